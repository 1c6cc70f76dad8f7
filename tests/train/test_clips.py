"""A training step over clips: the pyramid, the noise of each frame, what the network is told."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch

from mdmkit import assemble
from mdmkit.data.loader import batches
from mdmkit.pyramid import pyramid
from mdmkit.recipe import loads
from mdmkit.train import loop
from mdmkit.train.conditions import micro_conditions
from mdmkit.train.draws import Rows, draw_noise
from tests.growing import REGISTRY
from tests.train.test_grow_time import CLIPS, LAYERS

TEXT = CLIPS.format(frames=(1, 4), temporal=("", LAYERS[0]), step=4).partition("[growth]")[0]
TEXT = TEXT.replace("batch = 4", "batch = 4\nsteps = 2")
ROWS = Rows((0, 1, 2, 3), (4, 2))


def parts_of(*sets: str) -> tuple[Any, Any]:
    recipe = loads(TEXT, sets, REGISTRY)
    return recipe, assemble.parts(recipe, REGISTRY)


def watched(parts: Any, plan: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
    """What the objective is given in a step, and the losses."""
    seen: dict[str, Any] = {}

    def objective(x: Any, eps: Any, t: Any, **told: Any) -> Any:
        seen.update(x=x, eps=eps, **told)
        return parts.objective(x, eps, t, **told)

    said, _ = loop.forward(objective, parts, plan, batch, ROWS, 7, torch.device("cpu"))  # type: ignore[arg-type]
    return said, seen


@pytest.mark.parametrize("pooling", ["average", "pick"])
def test_a_step_over_clips(pooling: str):
    recipe, parts = parts_of(f"diffusion.frame_pooling={pooling!r}")
    batch = next(batches(parts.dataset, [[0, 1, 2, 3]]))
    assert batch.images.shape == (4, 3, 4, 16, 16)
    said, seen = watched(parts, assemble.plan(recipe), batch)
    clips, sizes = batch.images.float() / 127.5 - 1, ((1, 8, 8), (4, 16, 16))
    wanted = pyramid(clips, sizes, (4, 2), pick=pooling == "pick")
    assert [tuple(x.shape) for x in wanted] == [(4, 3, 1, 8, 8), (2, 3, 4, 16, 16)]
    assert all(torch.equal(a, b) for a, b in zip(seen["x"], wanted, strict=True))
    picked = pyramid(batch.images[:, :, 0].float() / 127.5 - 1, [8])[0]
    assert torch.equal(seen["x"][0][:, :, 0], picked) == (pooling == "pick")
    eps = draw_noise(ROWS, ((1, 8, 8), (4, 16, 16)), seed=3, step=7, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(seen["eps"], eps, strict=True))
    assert not torch.equal(eps[1][:, :, 0], eps[1][:, :, 1])
    assert batch.fps is not None
    assert torch.equal(seen["micros"]["fps"], batch.fps)
    assert bool((batch.fps > 0).all())
    assert torch.isfinite(said.trained).all()


def test_a_clip_model_learns_from_pictures_which_are_clips_of_one_frame():
    recipe, parts = parts_of("data={use='shapes'}")
    batch = next(batches(parts.dataset, [[0, 1, 2, 3]]))
    assert batch.images.ndim == 4
    said, seen = watched(parts, assemble.plan(recipe), batch)
    assert [tuple(x.shape) for x in seen["x"]] == [(4, 3, 1, 8, 8), (2, 3, 1, 16, 16)]
    assert not seen["micros"]["fps"].any()
    assert torch.isfinite(said.trained).all()


def test_the_dataset_is_told_the_frames_of_the_highest_level():
    recipe, parts = parts_of()
    assert parts.dataset.sample(0).image.shape == (4, 16, 16, 3)
    whole = assemble.dataset(recipe, REGISTRY, frames=9, resolution=(8, 8))
    assert whole.sample(0).image.shape == (9, 8, 8, 3)


def test_the_rate_of_frames_is_that_of_the_data():
    _, parts = parts_of()
    batch = next(batches(parts.dataset, [[0, 1]]))
    told = micro_conditions(parts.nest, batch, torch.device("cpu"))
    assert told.keys() == {"scale", "fps"}
    none = micro_conditions(parts.nest, attrs.evolve(batch, fps=None), torch.device("cpu"))
    assert not none["fps"].any()
