"""The stages of a run: each is put together, trained to its end, and grown into the next."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mdmkit.errors import WrongInput

if TYPE_CHECKING:
    import torch

    from mdmkit.plugins import Registry
    from mdmkit.recipe.schema import Recipe
    from mdmkit.train.ema import EMA
    from mdmkit.train.parallel import World
    from mdmkit.train.plan import Parts, Phase, Plan
    from mdmkit.train.state import Checkpoint

    from .run_told import Told

__all__ = [
    "StageRun",
    "ask_to_grow",
    "fork",
    "grown",
    "refuse_too_large",
    "refuse_unreached",
    "stage_run",
    "total_steps",
    "train_stage",
]


@attrs.frozen
class StageRun:
    """A stage, put together: its recipe, what is trained, how, and from where."""

    recipe: Recipe
    parts: Parts
    plan: Plan
    resume: Checkpoint | None

    @property
    def index(self) -> int:
        """Which stage it is."""
        return self.plan.phase.index


def stage_run(
    recipe: Recipe, registry: Registry, checkpoint: Checkpoint | None, *, device: torch.device | str
) -> StageRun:
    """The stage that a checkpoint is of; the first where there is none."""
    from mdmkit import assemble
    from mdmkit.recipe.stages import stage_recipe

    facts = {} if checkpoint is None else checkpoint.facts
    index = facts.get("stage", 0)
    here = stage_recipe(recipe, registry, index)
    phase = phase_of(
        recipe, registry, index, first=facts.get("first", 0), pictures=facts.get("pictures_before", 0)
    )
    plan = assemble.plan(here, phase)
    if checkpoint is not None and facts.get("ends_stage"):
        plan = attrs.evolve(plan, steps=checkpoint.step)  # it may have ended before its time
    return StageRun(here, assemble.parts(here, registry, device=device), plan, checkpoint)


def total_steps(recipe: Recipe, registry: Registry) -> int:
    """The steps of all stages, where none ends early."""
    from mdmkit.recipe.stages import stage_recipes

    return sum(stage.train.steps or 0 for stage in stage_recipes(recipe, registry))


def train_stage(
    stage: StageRun,
    folder: Path,
    registry: Registry,
    info: Any,
    told: Told,
    *,
    device: torch.device,
    ranks: World,
) -> EMA:
    """Train one stage to its end; its checkpoints carry its own recipe, so that each is a whole model."""
    from mdmkit.recipe import dumps
    from mdmkit.train.folder import RESOLVED, RUN
    from mdmkit.train.loop import train

    from .run_pictures import grids

    def on_step(step: int, metrics: dict[str, Any]) -> None:
        told.step = step
        registry.hook.mdmkit_step_end(run=info, step=step, metrics=metrics)

    def on_sample(step: int, ema: Any) -> None:
        if ranks.is_main:
            with ema.swap():
                grids(stage.recipe, registry, stage.parts, folder, step, told, device, stage=stage.index)
        ranks.barrier()

    return train(
        stage.parts,
        stage.plan,
        device=device,
        world=ranks,
        run_dir=folder,
        resume=stage.resume,
        texts={RESOLVED: dumps(stage.recipe), RUN: (folder / RUN).read_text(encoding="utf-8")},
        on_log=told.log,
        on_event=told.event,
        on_step=on_step,
        on_sample=on_sample,
        sample_every=stage.recipe.train.sample_every,
        before_checkpoint=told.sync,
        on_checkpoint=lambda step, path: registry.hook.mdmkit_checkpoint_saved(
            run=info, step=step, path=path
        ),
    )


def phase_of(recipe: Recipe, registry: Registry, index: int, *, first: int = 0, pictures: int = 0) -> Phase:
    """Where a stage stands among the others; what it brings is known from the networks of the two."""
    from torch import nn

    from mdmkit import assemble
    from mdmkit.growth import apart
    from mdmkit.recipe.stages import growth_of, stage_recipe
    from mdmkit.stages import new_levels
    from mdmkit.train.plan import Phase, trained_parameters

    growth = growth_of(recipe, registry)
    stages = growth.stages
    stage = stages[index]

    def names(of: int) -> set[str]:
        nest = assemble.nest(stage_recipe(recipe, registry, of), registry, device="meta")
        return {name for name, _ in nest.named_parameters()}

    new: set[str] = set()
    if index and apart(growth):
        text = assemble.text_encoder(recipe, registry, device="meta")
        new = names(index) | trained_parameters(nn.Module(), text).keys()
    elif index:
        new = names(index) - names(index - 1)
    return Phase(
        index=index,
        first=first,
        pictures=pictures,
        new=frozenset(new),
        new_levels=new_levels(stages, index),
        warmup=stage.warmup,
        freeze=stage.freeze,
        fade=stage.fade,
        plateau=stage.plateau,
        last=index + 1 == len(stages),
    )


def grown(recipe: Recipe, registry: Registry, folder: Path, *, device: torch.device | str) -> StageRun:
    """The next stage, from the checkpoint that ends the one before it."""
    from mdmkit import model_folder
    from mdmkit.growth import apart
    from mdmkit.recipe.stages import growth_of
    from mdmkit.train.plan import beside_the_model, trained_parameters
    from mdmkit.train.state import grow, load, next_stage

    ended = load(model_folder.find(folder))
    made = stage_run(recipe, registry, next_stage(ended), device=device)
    trained = trained_parameters(made.parts.nest, made.parts.text) | beside_the_model(made.parts.weighting)
    shapes = {name: p.shape for name, p in trained.items()}
    assert made.resume is not None
    growth = growth_of(recipe, registry)
    return attrs.evolve(made, resume=grow(made.resume, shapes, growth.carry, apart=apart(growth)))


def refuse_too_large(recipe: Recipe, registry: Registry, *, device: torch.device, ranks: int) -> None:
    """Refuse a batch that does not split over the ranks, and a training that cannot fit into this machine.

    Raises:
        WrongInput: in any of its stages.
    """
    from mdmkit import assemble
    from mdmkit.pyramid import of_one_frame
    from mdmkit.recipe.stages import stage_recipes
    from mdmkit.resolutions import some_steps
    from mdmkit.train.memory import check_fits, training_memory
    from mdmkit.train.plan import step_groups

    for here in stage_recipes(recipe, registry):
        plan, sampler = assemble.plan(here), assemble.resolution_sampler(here, registry)
        groups = [
            group
            for step in some_steps(here.train.steps)
            for group in step_groups(plan, step, resolution_sampler=sampler, ranks=ranks)
        ]
        nest, parts = assemble.nest(here, registry, device="meta"), ranks * plan.accumulate
        tokens = (getattr(here.text.settings, "max_tokens", None) or 1) if here.text else 0
        needed = []
        for pictures in {group.pictures for group in groups}:
            # the step that takes most: levels that a step does not reach take no rows
            by_step = [group.per_level for group in groups if group.pictures == pictures]
            rows = tuple(map(max, itertools.zip_longest(*by_step, fillvalue=0)))
            on_one = tuple(count // parts for count in rows)
            sizes = assemble.resolutions(here)
            model, activations = training_memory(
                nest,
                of_one_frame(sizes) if pictures else sizes,
                on_one,
                tokens=tokens,
                cond_dim=assemble.cond_dim(here),
            )
            needed.append((activations, model, on_one[0]))
        activations, model, most = max(needed)  # groups run one after another
        check_fits(model, activations, device=device, bf16=plan.precision == "bf16", pictures=most)


def refuse_unreached(recipe: Recipe, registry: Registry) -> None:
    """Refuse stages to come with levels that no picture is as large as, where rows stop at their size.

    Raises:
        WrongInput: in any of them.
    """
    from mdmkit import assemble
    from mdmkit.recipe.stages import stage_recipes
    from mdmkit.resolutions import BySource

    for here in stage_recipes(recipe, registry)[1:]:
        if isinstance(assemble.resolution_sampler(here, registry), BySource):
            assemble.by_size(here, registry, assemble.dataset(here, registry))


def ask_to_grow(folder: Path, recipe: Recipe, registry: Registry) -> None:
    """Ask a run, whether it goes on now or later, to end its stage at its next step.

    Raises:
        WrongInput: it is in its last stage already.
    """
    from mdmkit.recipe.stages import growth_of
    from mdmkit.train.folder import GROW_NOW
    from mdmkit.train.state import latest, read_facts

    found = latest(folder / "checkpoints")
    facts = {} if found is None else read_facts(found)
    index, stages = facts.get("stage", 0) + bool(facts.get("ends_stage")), growth_of(recipe, registry).stages
    if index + 1 >= len(stages):
        raise WrongInput(
            f"{folder} is in the last of its {len(stages)} stages, and does not grow any more; "
            "leave out --grow-now"
        )
    (folder / GROW_NOW).touch()


def fork(folder: Path, stage: int, out: Path, recipe: Recipe, registry: Registry) -> None:
    """A run folder of its own that goes on, by `recipe`, from the end of a stage of another.

    Raises:
        WrongInput: that stage has not ended there, is another in the recipe or its last, or the new folder is
            taken.
    """
    from mdmkit.growth import apart
    from mdmkit.recipe.stages import growth_of
    from mdmkit.train.folder import RECIPE, RESOLVED, RUN, refuse_taken
    from mdmkit.train.logs import LOG_NAME, cut_back
    from mdmkit.train.state import read_facts, stage_ends

    from .run_resume import unlike

    growth = growth_of(recipe, registry)
    count = len(growth.stages)
    if not 0 <= stage < count - 1:
        raise WrongInput(
            f"--from-stage {stage}: expected a stage that another follows, of the {count} there are, counted "
            "from 0"
        )
    ends = stage_ends(folder / "checkpoints")
    if stage not in ends:
        has = f"only {', '.join(map(str, sorted(ends)))} have" if ends else "none has"
        raise WrongInput(
            f"--from-stage {stage}: that stage of {folder} has not ended ({has}); let it train on"
        )
    if (table := unlike(ends[stage], recipe, registry)) is not None:
        raise WrongInput(
            f"--from-stage {stage}: --set changes [{table}] of that stage, which {folder} has trained; "
            "start a new run instead"
        )
    refuse_taken(out)
    aside = out.with_name(f".writing-{out.name}")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "checkpoints").mkdir(parents=True)
    for name in (RECIPE, RUN, LOG_NAME, RESOLVED):
        if (folder / name).is_file():
            shutil.copy2(folder / name, aside / name)
    # the models of a cascade draw for each other
    wanted = range(stage + 1) if apart(growth) else [stage]
    for path in (ends[of] for of in wanted if of in ends):
        shutil.copytree(path, aside / "checkpoints" / path.name)
    step = read_facts(ends[stage])["step"]
    cut_back(aside / LOG_NAME, step)
    # what the other run grew into there is not what this one will
    log = (aside / LOG_NAME).read_text(encoding="utf-8").splitlines(keepends=True)
    other = {"event": "grown", "step": step}
    kept = [line for line in log if not other.items() <= json.loads(line).items()]
    (aside / LOG_NAME).write_text("".join(kept), encoding="utf-8")
    aside.replace(out)  # an empty folder gives way
