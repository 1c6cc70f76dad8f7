"""Batches of clips and pictures: every row counts alike, each kind goes on in its own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from mdmkit import assemble
from mdmkit.data.beside import Beside
from mdmkit.data.loader import batches
from mdmkit.errors import WrongInput
from mdmkit.recipe import RecipeError, loads
from mdmkit.resolutions import Mixed
from mdmkit.train import loop
from mdmkit.train.draws import micro_batches
from mdmkit.train.parallel import World
from mdmkit.train.plan import Plan, step_groups, trained_parameters
from tests.growing import REGISTRY

from . import tiny
from .test_clips import TEXT

CPU = torch.device("cpu")
MIXED = TEXT.replace("batch = 4", 'batch = 8\nlevels = { use = "mixed", shares = [0.5, 0.5] }').replace(
    'use = "moving_shapes"', 'use = "moving_shapes"\npicture_share = 0.25'
)


def recipe_of(*sets: str) -> Any:
    return loads(MIXED, sets, REGISTRY)


@given(
    st.floats(0.01, 0.99),
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([(1.0,), (0.5, 0.5), (0.2, 0.3, 0.5)]),
)
def test_groups_share_out_the_places_of_a_batch(
    share: float, units: int, ranks: int, accumulate: int, shares: tuple[float, ...]
) -> None:
    multiple = ranks * accumulate
    plan = Plan(steps=1, batch=units * multiple, accumulate=accumulate, picture_share=share)
    sampler = Mixed(shares, levels=len(shares))
    asked: dict[str, Any] = {"resolution_sampler": sampler, "ranks": ranks}
    try:
        groups = step_groups(plan, 0, **asked)
    except WrongInput:
        assume(False)
        return
    assert [group.pictures for group in groups] == [True, False], "clips come last"
    pictures = groups[0].per_level[0]
    # as near as whole rows come, but never none of a kind
    most = max(0.5, 1 - share * units, 1 - (1 - share) * units)
    assert abs(pictures / multiple - share * units) <= most + 1e-9
    assert all(len(group.per_level) == len(shares) for group in groups)
    places = [
        place
        for rank in range(ranks)
        for group in groups
        for rows in micro_batches(
            group.per_level, rank=rank, ranks=ranks, accumulate=accumulate, first=group.first
        )
        for place in rows.places
    ]
    assert sorted(places) == list(range(plan.batch))


def test_too_small_a_batch_is_named() -> None:
    plan = Plan(steps=1, batch=4, picture_share=0.25)
    with pytest.raises(WrongInput, match=r"data.picture_share=0.25 .* cannot give each of 2 levels"):
        step_groups(plan, 0, resolution_sampler=Mixed((0.5, 0.5), levels=2))


def by_hand(parts: Any, plan: Plan, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each level over all rows of a step's batch, and the gradient's norm."""
    sums, rows_at = torch.zeros(len(parts.resolutions)), torch.zeros(len(parts.resolutions))
    for group in step_groups(plan, step, resolution_sampler=parts.resolution_sampler):
        rows = group.per_level[0]
        (all_rows,) = micro_batches(group.per_level, rank=0, ranks=1, accumulate=1, first=group.first)
        numbers = [parts.beside.position(step * rows + i, picture=group.pictures) for i in range(rows)]
        batch = next(batches(parts.beside, [numbers]))
        assert (batch.images.ndim == 4) == group.pictures
        said, _ = loop.forward(parts.objective, parts, plan, batch, all_rows, step, CPU)
        counts = torch.tensor([float(len(found)) for found in said.rows])
        sums, rows_at = sums + counts * said.trained, rows_at + counts
    means = sums / rows_at
    means.sum().backward()
    parameters = trained_parameters(parts.nest, parts.text).values()
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    for p in parameters:
        p.grad = None
    return means.detach(), norm


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_row_of_a_step_counts_alike(tmp_path: Path, accumulate: int) -> None:
    recipe = recipe_of(f"train.accumulate={accumulate}", "train.batch=16", "train.steps=1")
    parts, plan = assemble.parts(recipe, REGISTRY), assemble.plan(recipe)
    for p in trained_parameters(parts.nest, parts.text).values():  # zero layers would hide what they are told
        p.data.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    wanted, norm = by_hand(parts, plan, 0)
    seen: list[dict[str, Any]] = []
    loop.train(
        parts, plan, device=CPU, world=World(), run_dir=tmp_path,
        on_step=lambda step, metrics: seen.append({k: v.detach().clone() for k, v in metrics.items()}),
    )  # fmt: skip
    torch.testing.assert_close(seen[0]["loss"], wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen[0]["grad_norm"], norm, rtol=1e-4, atol=1e-6)


def test_each_kind_goes_on_in_its_own_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = recipe_of('data.pictures={use="shapes"}', "train.steps=3")
    parts, plan = assemble.parts(recipe, REGISTRY), assemble.plan(recipe)
    asked: dict[bool, list[int]] = {True: [], False: []}

    def noting(dataset: Any, picture: bool) -> Any:
        def sample(position: int) -> Any:
            asked[picture].append(position)
            return dataset.sample(position)

        class Noting:
            resolution = dataset.resolution

        Noting.sample = staticmethod(sample)  # type: ignore[attr-defined]
        return Noting()

    assert parts.beside is not None
    both = Beside(noting(parts.beside.clips, False), noting(parts.beside.pictures, True))
    loop.train(attrs.evolve(parts, beside=both), plan, device=CPU, world=World(), run_dir=tmp_path)
    assert asked == {True: list(range(6)), False: list(range(18))}
    # without another source they are moments of clips, not of those in the batch
    own = assemble.parts(recipe_of(), REGISTRY).beside
    assert own is not None
    assert own.pictures.sample(0).image.shape == (16, 16, 3)
    assert own.pictures.sample(0).caption != own.clips.sample(0).caption


def test_stopped_and_resumed_equals_never_stopped(tmp_path: Path) -> None:
    text = MIXED.replace("steps = 2\n", "steps = 4\ncheckpoint_every = 2\n", 1)
    recipe = tiny.write_recipe(tmp_path, text)
    done = tiny.here("run", recipe, "--out", tmp_path / "whole")
    assert done.code == 0, done.err
    stopped = tiny.here(
        "run", recipe, "--out", tmp_path / "run", *tiny.STOP, STOP_AT="2", STOP_BY="SIGTERM"
    )
    assert stopped.code == 130, stopped.err
    done = tiny.here("run", "--resume", tmp_path / "run")
    assert done.code == 0, done.err
    assert tiny.numbers(tmp_path / "run") == tiny.numbers(tmp_path / "whole")
    ours, theirs = (tiny.tensors(tmp_path / name, 4) for name in ("run", "whole"))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


WRONG = {
    'data.pictures={use="shapes"}': "data.pictures: no row of a batch is for them; say data.picture_share",
    "data.picture_share=1.0": "data.picture_share: expected float >= 0.0 and < 1.0, got 1.0",
    "data.picture_share=0.1": "data.picture_share: 0.1 of 8 rows leaves 1 for pictures, expected >= 2, a row",
    "data.picture_share=0.9": "data.picture_share: 0.9 of 8 rows leaves 1 for clips, expected >= 2, a row",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_go_together_is_refused(wrong: str) -> None:
    sets = ["data.picture_share=0.0", wrong] if wrong.startswith("data.pictures") else [wrong]
    with pytest.raises(RecipeError) as error:
        recipe_of(*sets)
    assert WRONG[wrong] in str(error.value)


def test_a_model_of_pictures_has_no_pictures_beside_its_clips() -> None:
    text = tiny.RECIPE.replace('use = "shapes"', 'use = "shapes"\npicture_share = 0.5')
    with pytest.raises(RecipeError, match="the model draws pictures, and all rows are"):
        loads(text, registry=REGISTRY)
    # two sources of pictures are another thing
    text = text.replace("picture_share", 'pictures = { use = "shapes", objects = [2, 2] }\npicture_share')
    assert loads(text, registry=REGISTRY).data.picture_share == 0.5


def test_a_model_of_clips_that_sees_only_pictures_says_so(tmp_path: Path) -> None:
    text = MIXED.replace('use = "moving_shapes"\npicture_share = 0.25', 'use = "shapes"')
    done = tiny.here("run", tiny.write_recipe(tmp_path, text), "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "data.use = 'shapes' has only pictures, and the model draws clips" in done.err
