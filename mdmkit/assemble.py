"""From a recipe to objects: what each table of a recipe becomes, with the context that its kind is given.

Everything heavy is imported where it is used. A recipe comes from `mdmkit.recipe.load` or `resolve`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdmkit.errors import WrongInput
from mdmkit.recipe.checks import clip_frames, side

if TYPE_CHECKING:
    import torch

    from mdmkit.data.beside import Beside
    from mdmkit.data.by_size import BySize
    from mdmkit.diffusion import Diffusion
    from mdmkit.nn import NestedUNet
    from mdmkit.plugins import Registry
    from mdmkit.recipe import Recipe
    from mdmkit.sampling.draw import Drawing
    from mdmkit.train.plan import Parts, Phase, Plan

__all__ = [
    "beside",
    "by_size",
    "check_guidance",
    "cond_dim",
    "dataset",
    "diffusion",
    "drawing",
    "draws_clips",
    "frames",
    "frames_power",
    "guidance",
    "loggers",
    "loss",
    "lr_schedule",
    "metrics",
    "nest",
    "optimizer",
    "parts",
    "picks_frames",
    "plan",
    "resolution_sampler",
    "resolutions",
    "rule",
    "spacing",
    "text_encoder",
    "threshold",
    "time_sampler",
    "weighting",
]


def resolutions(recipe: Recipe, levels: int | None = None) -> tuple[tuple[int, ...], ...]:
    """The (height, width) of each level, low to high; of the first `levels` where given.

    Of a model of clips it is (frames, height, width).
    """
    sizes = tuple(side(level.resolution) for level in recipe.model.levels)
    if draws_clips(recipe):
        counts = (clip_frames(level) for level in recipe.model.levels)
        return tuple((count, *size) for count, size in zip(counts, sizes, strict=True))[:levels]
    return sizes[:levels]


def draws_clips(recipe: Recipe) -> bool:
    """Whether a level has clips (B, C, F, H, W)."""
    return any(clip_frames(level) > 1 for level in recipe.model.levels)


def picks_frames(recipe: Recipe) -> bool:
    """Whether frames of inner levels are picked, and not averages."""
    return recipe.diffusion.frame_pooling == "pick"


def frames(recipe: Recipe) -> tuple[int, ...] | None:
    """How many frames stand in a picture of each level, low to high; None: they are no grids of frames."""
    every = [level.network.settings for level in recipe.model.levels]
    counts = tuple(one.frames if getattr(one, "layout", None) == "grid" else 1 for one in every)
    return counts if max(counts, default=1) > 1 else None


def cond_dim(recipe: Recipe) -> int | None:
    """The width of the text features, as the recipe says it; None where the model is unconditional.

    Raises ValueError where the text encoder's settings have no `width`.
    """
    if recipe.text is None:
        return None
    width = getattr(recipe.text.settings, "width", None)
    if width is None:
        raise ValueError(
            f"text encoder {recipe.text.name!r} has no setting `width`, which the core is built for"
        )
    return width


def nest(
    recipe: Recipe,
    registry: Registry,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    levels: int | None = None,
) -> NestedUNet:
    """The network of the recipe, its first `levels` levels where given, with fresh parameters."""
    from mdmkit.nn import NestedUNet

    where: dict[str, Any] = {"device": device, "dtype": dtype}
    picked = recipe.model.levels[:levels]
    core = registry.build(picked[0].network, kind="core", cond_dim=cond_dim(recipe), **where)
    shells = []
    inner = core
    for level in picked[1:]:
        told = {"inner_channels": inner.channels[0], "emb_dim": core.emb_dim, "cond_width": core.cond_width}
        inner = registry.build(level.network, kind="shell", **told, **where)
        shells.append(inner)
    attend = registry.build(recipe.model.attend, kind="attention")
    return NestedUNet(
        core, shells, use_checkpoint=recipe.model.use_checkpoint, attend=attend, lift=lift(recipe, levels)
    )


def lift(recipe: Recipe, levels: int | None = None) -> tuple[float, ...] | None:
    """What each shell adds of the prediction inside: where that is a picture, the same picture at its scale.

    None for other predictions, and for grids of frames, whose levels have their frames in other places.
    """
    from mdmkit.diffusion import signal_scales

    said = recipe.diffusion
    if said.prediction != "x0" or frames(recipe) is not None:
        return None
    scales = signal_scales(
        resolutions(recipe, levels), scale=said.signal_scale, power=said.signal_scale_power
    )
    count = len(resolutions(recipe, levels))
    return tuple(outer / inner for inner, outer in pairwise(scales or (1.0,) * count))


def text_encoder(
    recipe: Recipe,
    registry: Registry,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> torch.nn.Module | None:
    """The text encoder, or None where the recipe has none."""
    if recipe.text is None:
        return None
    return registry.build(recipe.text, kind="text_encoder", device=device, dtype=dtype)


def diffusion(recipe: Recipe, registry: Registry) -> Diffusion:
    """The diffusion process: the schedule shifted for each level, and what the network predicts."""
    from mdmkit.diffusion import Diffusion, signal_scales
    from mdmkit.schedules import shift_levels

    said = recipe.diffusion
    schedule = registry.build(said.schedule, kind="noise_schedule")
    schedules = shift_levels(
        schedule,
        resolutions(recipe),
        shift_power=said.shift_power,
        shift_power_frames=frames_power(recipe),
    )
    scales = signal_scales(resolutions(recipe), scale=said.signal_scale, power=said.signal_scale_power)
    return Diffusion(
        schedules=schedules,
        prediction=said.prediction,
        scales=scales,
        given=said.given,
        given_noise=said.given_noise,
    )


def frames_power(recipe: Recipe) -> float:
    """p_f of the shift: 1 where frames are averaged, which leaves less noise, 0 where they are picked."""
    said = recipe.diffusion.shift_power_frames
    return said if said is not None else 0.0 if picks_frames(recipe) else 1.0


def dataset(
    recipe: Recipe,
    registry: Registry,
    *,
    resolution: tuple[int, int] | None = None,
    frames: int | None = None,
) -> Any:
    """The dataset at the recipe's highest resolution, or at another one.

    frames: of each clip, those of the highest level where not given; a dataset that has only pictures is not
    told.
    """
    top = resolutions(recipe)[-1]
    resolution = resolution or (top[-2], top[-1])
    if frames is None and len(top) == 3:
        frames = top[0]
    source = recipe.data.source
    told: dict[str, Any] = {"seed": recipe.run.seed, "resolution": resolution}
    if frames is not None and registry.takes(source, "frames", kind="dataset"):
        told["frames"] = frames
    return registry.build(source, kind="dataset", **told)


def beside(recipe: Recipe, registry: Registry, clips: Any) -> Beside | None:
    """Pictures beside these clips, where batches have both."""
    from mdmkit.data.beside import Beside
    from mdmkit.streams import seed_of

    if not recipe.data.picture_share:
        return None
    # a seed of its own: pictures out of the clips are not those beside them in a batch
    told = {"seed": seed_of(recipe.run.seed, "pictures"), "resolution": clips.resolution}
    source = recipe.data.pictures or recipe.data.source
    return Beside(clips, registry.build(source, kind="dataset", **told))


def weighting(recipe: Recipe, registry: Registry) -> Any:
    """The loss weight over logsnr."""
    return registry.build(recipe.diffusion.weighting, kind="weighting")


def time_sampler(recipe: Recipe, registry: Registry) -> Any:
    """The distribution of t in training; level 0's schedule is given to those over its noise levels."""
    schedule = diffusion(recipe, registry).schedules[0]
    return registry.build(recipe.diffusion.time_sampler, kind="time_sampler", schedule=schedule)


def loss(recipe: Recipe, registry: Registry) -> Any:
    """The pixel-wise distance of prediction and target: a function."""
    return registry.build(recipe.diffusion.loss, kind="loss")


def resolution_sampler(recipe: Recipe, registry: Registry, *, levels: int | None = None) -> Any:
    """Which levels the rows of a batch train, among the first `levels` where given."""
    levels = levels or len(recipe.model.levels)
    return registry.build(recipe.train.levels, kind="resolution_sampler", levels=levels)


def optimizer(recipe: Recipe, registry: Registry, params: Iterable[Any]) -> torch.optim.Optimizer:
    """The optimiser of these parameters (tensors, groups, or (name, tensor) pairs, as torch takes them)."""
    return registry.build(recipe.train.optimizer, kind="optimizer", params=params)


def lr_schedule(recipe: Recipe, registry: Registry) -> Any:
    """The factor on the learning rate over steps."""
    return registry.build(recipe.train.lr_schedule, kind="lr_schedule")


def loggers(recipe: Recipe, registry: Registry, *, run_dir: Path) -> list[Any]:
    """Where numbers and pictures go, beside log.jsonl."""
    return [registry.build(use, kind="logger", run_dir=run_dir) for use in recipe.train.loggers]


def metrics(recipe: Recipe, registry: Registry, *, device: torch.device | str = "cpu") -> Mapping[str, Any]:
    """What is measured, by the metrics' names."""
    return {use.name: registry.build(use, kind="metric", device=device) for use in recipe.evaluate.metrics}


def rule(recipe: Recipe, registry: Registry) -> Any:
    """The update rule of sampling: a function."""
    return registry.build(recipe.sample.rule, kind="sampler")


def spacing(recipe: Recipe, registry: Registry) -> Any:
    """Which times the rule visits: a function."""
    return registry.build(recipe.sample.spacing, kind="spacing")


def threshold(recipe: Recipe, registry: Registry) -> Any:
    """What keeps predicted pictures in range: a function, or one a level."""
    said = recipe.sample.threshold
    if isinstance(said, tuple):
        return tuple(registry.build(use, kind="threshold") for use in said)
    return registry.build(said, kind="threshold")


def guidance(recipe: Recipe, registry: Registry, *, device: torch.device | str = "cpu") -> list[Any]:
    """The guidance components, in the order in which they are applied; models that they ask on a device.

    Raises:
        WrongInput: there is no such model, or it does not fit.
    """
    from mdmkit.sampling.auto import OverModel
    from mdmkit.weak_model import opened

    built = [registry.build(use, kind="guidance") for use in recipe.sample.guidance]
    return [
        opened(one, recipe, registry, device=device) if isinstance(one, OverModel) else one for one in built
    ]


def check_guidance(recipe: Recipe, registry: Registry) -> None:
    """Refuse guidance by a model that is not there, or of other pictures or noise, and intervals outside of
    the schedule; nothing is loaded.

    Raises:
        WrongInput: there is one.
    """
    from mdmkit.sampling import Interval
    from mdmkit.sampling.auto import OverModel
    from mdmkit.weak_model import check

    for use in recipe.sample.guidance:
        one = registry.build(use, kind="guidance")
        if isinstance(one, OverModel):
            check(one, recipe, registry)
        elif isinstance(one, Interval):
            try:
                one.check(diffusion(recipe, registry))
            except ValueError as error:
                raise WrongInput(f"sample.guidance: {error}") from error


def drawing(recipe: Recipe, registry: Registry, *, device: torch.device | str = "cpu") -> Drawing:
    """How pictures are drawn: the [sample] table; other models that guidance asks are loaded on a device."""
    from mdmkit.sampling.draw import Drawing

    return Drawing(
        rule=rule(recipe, registry),
        spacing=spacing(recipe, registry),
        threshold=threshold(recipe, registry),
        guidance=tuple(guidance(recipe, registry, device=device)),
        steps=recipe.sample.steps,
        outer_from=recipe.sample.outer_from,
    )


def plan(recipe: Recipe, phase: Phase | None = None) -> Plan:
    """The numbers of a training: the [train] table, with what it shares with others.

    phase: where it stands among the stages of a growing network; the recipe is that of the stage.
    """
    from mdmkit.train.plan import Phase, Plan

    phase = phase or Phase()

    said = recipe.train
    if said.steps is None or said.batch is None:
        raise ValueError("a training needs train.steps and train.batch")
    return Plan(
        steps=phase.first + said.steps,
        batch=said.batch,
        phase=phase,
        seed=recipe.run.seed,
        accumulate=said.accumulate,
        clip=said.clip,
        ema=said.ema,
        caption_dropout=said.caption_dropout,
        picture_share=recipe.data.picture_share,
        level_weights=recipe.diffusion.level_weights,
        precision=recipe.run.precision,
        max_bad_steps=said.max_bad_steps,
        checkpoint_every=said.checkpoint_every,
        keep=said.keep,
        log_every=said.log_every,
        workers=recipe.data.workers,
    )


def parts(recipe: Recipe, registry: Registry, *, device: torch.device | str = "cpu") -> Parts:
    """The objects of a training, with fresh parameters that depend on run.seed alone."""
    import torch

    from mdmkit.streams import seed_of
    from mdmkit.train.objective import Objective
    from mdmkit.train.plan import Parts, beside_the_model, trained_parameters

    source = dataset(recipe, registry)  # first: what is wrong with files is known soonest
    sampler, sorted_by_size = by_size(recipe, registry, source)
    torch.manual_seed(seed_of(recipe.run.seed, "parameters"))
    # made on the CPU, so that a seed gives the same start on every device
    network = nest(recipe, registry).to(device)
    text = text_encoder(recipe, registry, device=device)
    if recipe.run.compile:
        from mdmkit.train.parallel import compile_blocks

        compile_blocks(network.blocks())
    learns = text is not None and getattr(text, "trainable", False)
    hold_empty_features(recipe, text, source)
    weights = weighting(recipe, registry)
    heads = weights.heads(len(recipe.model.levels)).to(device) if hasattr(weights, "heads") else None
    trained = trained_parameters(network, text) | beside_the_model(heads)
    return Parts(
        nest=network,
        text=text,
        objective=Objective(
            network,
            text if learns else None,
            diffusion=diffusion(recipe, registry),
            loss_space=recipe.diffusion.loss_space,
            pixel_loss=loss(recipe, registry),
            weighting=weights,
            uncertainty=heads,
        ),
        dataset=source,
        optimizer=optimizer(recipe, registry, list(trained.items())),
        lr_schedule=lr_schedule(recipe, registry),
        resolution_sampler=sampler,
        time_sampler=time_sampler(recipe, registry),
        resolutions=resolutions(recipe),
        frames=frames(recipe),
        pick=picks_frames(recipe),
        by_size=sorted_by_size,
        beside=beside(recipe, registry, source),
        weighting=heads,
    )


def by_size(recipe: Recipe, registry: Registry, source: Any) -> tuple[Any, BySize | None]:
    """The resolution sampler, and, where its rows stop at their picture's size, the data sorted by that.

    Raises:
        WrongInput: the data do not know their sizes, or no picture is as large as a level.
    """
    from mdmkit.data.by_size import BySize
    from mdmkit.resolutions import BySource

    sampler = resolution_sampler(recipe, registry)
    sizes = [side(level.resolution) for level in recipe.model.levels]
    if not isinstance(sampler, BySource):
        return sampler, None
    found = BySize(source, sizes, own_only=sampler.row_shares is None)
    try:
        return sampler.over(found.counts), found
    except ValueError as error:
        levels = ", ".join(f"{r}: {h} x {w}" for r, (h, w) in enumerate(sizes))
        largest = " x ".join(map(str, found.largest or ()))
        raise WrongInput(
            f"train.levels = by_source: {error} (levels {levels}; the largest picture is {largest}); leave "
            "that level out, or take larger pictures"
        ) from error


def hold_empty_features(recipe: Recipe, text: Any, source: Any) -> None:
    """Give an encoder of packed features those of the empty caption, for dropped captions, from the data.

    Raises:
        WrongInput: data and encoder do not go together.
    """
    import torch

    if text is None or not getattr(source, "features", False):
        return
    if not hasattr(text, "dropped"):
        raise WrongInput(
            "the data bring text features, but the text encoder reads captions; "
            'say text.use = "cached", or data.features = false'
        )
    if recipe.train.caption_dropout > 0 and hasattr(source, "empty_features"):
        features, mask = source.empty_features()
        try:
            text.hold_empty(torch.as_tensor(features).float(), torch.as_tensor(mask))
        except ValueError as error:
            raise WrongInput(f"text: {error}") from error
