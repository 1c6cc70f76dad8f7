"""What no field can see alone: rules across the tables of a recipe. No torch.

Each rule is a function named after what it guards; its parameters are the tables that it reads, and it runs
when those are in order by themselves, whatever is wrong elsewhere. Rules inside one component are its
settings' `problems()`; rules between a level's network and its resolution are the `level_problems()` of a
core's or shell's settings. Both give pairs of a path inside the table and a message.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs

from .options import Use
from .problems import Path, Problem
from .schema import Data, Diffusion, Evaluate, Model, Sample, Train
from .shares import (
    batch_feeds_levels,
    by_source_reads_pictures,
    levels_are_shared_out,
    levels_are_trained,
    pictures_stand_beside_clips,
    rows_pass_given_levels,
)

__all__ = ["clip_frames", "cross_problems", "leads_away", "side", "uses"]


def cross_problems(tables: Mapping[str, Any], *, allow_pipe: bool = False) -> list[Problem]:
    """The problems that all rules find in the tables of a recipe that are structured."""
    given = {**tables, "allow_pipe": allow_pipe}
    found: list[Problem] = []
    for rule in RULES:
        needs = inspect.signature(rule).parameters
        if all(name in given for name in needs):
            found += rule(**{name: given[name] for name in needs})
    return found


def side(resolution: int | tuple[int, int]) -> tuple[int, int]:
    """A resolution as (height, width)."""
    return (resolution, resolution) if isinstance(resolution, int) else resolution


def clip_frames(level: Any) -> int:
    """Frames of the clips of a level; 1 where it has pictures, grids of frames among them."""
    settings = level.network.settings
    return 1 if getattr(settings, "layout", None) == "grid" else getattr(settings, "frames", 1)


def text_of(resolution: int | tuple[int, int]) -> str:
    h, w = side(resolution)
    return str(h) if h == w else f"[{h}, {w}]"


def levels_exist(model: Model) -> Iterator[Problem]:
    if not model.levels:
        yield Problem("model.levels", "expected at least one level, got an empty list")


def levels_nest(model: Model) -> Iterator[Problem]:
    """Each level is a whole multiple of the one inside it along each axis, and its network fits there."""
    inner: tuple[int, int] | None = None
    frames: int | None = None
    for r, level in enumerate(model.levels):
        here, count = side(level.resolution), clip_frames(level)
        found: list[tuple[str, str]] = []
        if inner is not None and frames is not None:
            found += [("resolution", text) for text in misfit(here, inner, r - 1, count != frames)]
            found += [("frames", text) for text in misfit_in_time(count, frames, r - 1)]
        check = getattr(level.network.settings, "level_problems", None)
        if not found and check is not None:
            found = check(resolution=here, inner=inner, index=r)
            in_time = getattr(level.network.settings, "frame_problems", None)
            if in_time is not None:
                found = [*found, *in_time(inner=frames, index=r)]
        yield from (Problem(path, message).under(("model", "levels", r)) for path, message in found)
        inner, frames = here, count


def misfit_in_time(here: int, inner: int, index: int) -> Iterator[str]:
    """Why so many frames cannot stand around those of levels[index]."""
    if here % inner:
        yield f"{here} is no whole multiple of the {inner} of levels[{index}]"


def misfit(here: tuple[int, int], inner: tuple[int, int], index: int, more_frames: bool) -> Iterator[str]:
    """Why a resolution cannot stand around the one inside it, that of levels[index]."""
    what, other = text_of(here), f"{text_of(inner)} of levels[{index}]"
    if (here == inner and not more_frames) or here[0] < inner[0] or here[1] < inner[1]:
        yield f"levels run from low resolution to high, but {what} follows {other}"
    elif here[0] % inner[0] or here[1] % inner[1]:
        yield f"{what} is no whole multiple of {other}"


def level_weights_match(model: Model, diffusion: Diffusion) -> Iterator[Problem]:
    weights, levels = diffusion.level_weights, len(model.levels)
    if weights is not None and len(weights) != levels:
        yield Problem("diffusion.level_weights", f"expected one weight a level, {levels}, got {len(weights)}")


def some_levels_are_drawn(model: Model, diffusion: Diffusion) -> Iterator[Problem]:
    """Above the levels that are given there is one that is denoised, and counts in the loss."""
    given, levels, weights = diffusion.given, len(model.levels), diffusion.level_weights
    if given >= levels > 0:
        yield Problem(
            "diffusion.given", f"{given} of {levels} level{'s' * (levels > 1)}: none is left to be drawn"
        )
    elif given and weights is not None and len(weights) == levels and not any(weights[given:]):
        yield Problem(
            "diffusion.level_weights",
            f"no trainable parameter is left: of {levels} levels {given} {'is' if given == 1 else 'are'} "
            f"given and {'has' if given == 1 else 'have'} no loss, and the rest weighs 0",
        )


# what looks at the network as one process over all levels
EXAMINING = ("likelihood",)


def given_levels_are_not_examined(diffusion: Diffusion, evaluate: Evaluate) -> Iterator[Problem]:
    for i, use in enumerate(evaluate.metrics):
        if diffusion.given and use.name in EXAMINING:
            yield Problem(
                ("evaluate", "metrics", i),
                f"'{use.name}' is for models that draw all their levels, and diffusion.given = "
                f"{diffusion.given}; leave it out",
            )


def a_cascade_gives_its_levels(diffusion: Diffusion, growth: Use, sample: Sample) -> Iterator[Problem]:
    """Which levels are given follows from the stages, and no model can lead all models of a cascade."""
    if growth.name != "cascade":
        return
    if diffusion.given:
        yield Problem(
            "diffusion.given", "growth 'cascade' gives each stage the levels before it; leave it out"
        )
    for i, use in enumerate(sample.guidance):
        if use.name == "auto" and len(getattr(growth.settings, "stages", ())) > 1:
            yield Problem(
                ("sample", "guidance", i),
                "'auto' asks a model that is given the same levels, and the models of growth 'cascade' are "
                "given others; leave it out",
            )


def thresholds_match_levels(model: Model, sample: Sample) -> Iterator[Problem]:
    given, levels = sample.threshold, len(model.levels)
    if isinstance(given, tuple) and len(given) != levels:
        yield Problem("sample.threshold", f"expected one threshold a level, {levels}, got {len(given)}")


def steps_stand_once(train: Train, growth: Use) -> Iterator[Problem]:
    """steps and batch stand in [train] or in growth's stages, never in both."""
    stages = getattr(growth.settings, "stages", ())
    for name in ("steps", "batch"):
        inside = [i for i, stage in enumerate(stages) if says(stage, name)]
        if getattr(train, name) is None:
            if not stages:
                yield Problem(("train", name), "missing; expected int, here or in the stages of [growth]")
            yield from (
                Problem(
                    ("growth", "stages", i, name),
                    f"missing; expected int, as train.{name} is not given either",
                )
                for i in range(len(stages))
                if i not in inside
            )
        elif inside:
            yield Problem(("train", name), "stands here and in the stages of [growth]; leave one out")


def says(stage: Any, name: str) -> bool:
    """Whether a stage of growth says its steps (or pictures, which are steps too), or its batch."""
    names = ("steps", "images") if name == "steps" else (name,)
    return any(getattr(stage, one, None) is not None for one in names)


def growth_ends_whole(model: Model, growth: Use) -> Iterator[Problem]:
    """The stages of growth end with all levels of the network, and never have more."""
    stages = getattr(growth.settings, "stages", ())
    levels = [getattr(stage, "levels", 0) for stage in stages]
    for i, count in enumerate(levels):
        if count > len(model.levels):
            yield Problem(
                ("growth", "stages", i, "levels"), f"{count}, but [[model.levels]] has {len(model.levels)}"
            )
    if levels and levels[-1] < len(model.levels):
        yield Problem(
            ("growth", "stages", len(levels) - 1, "levels"),
            f"the last stage has {levels[-1]} of the {len(model.levels)} levels of [[model.levels]]; "
            "append a stage, or leave levels out",
        )


def micro_batches_divide(train: Train) -> Iterator[Problem]:
    if train.batch is not None and train.batch % train.accumulate:
        yield Problem("train.accumulate", f"{train.accumulate} does not divide train.batch = {train.batch}")


def prompts_need_text(sample: Sample, text: Use | None) -> Iterator[Problem]:
    if sample.prompts and text is None:
        yield Problem("sample.prompts", "prompts need a text encoder; add a [text] table")
    if sample.negative_prompt and text is None:
        yield Problem("sample.negative_prompt", "needs a text encoder; add a [text] table")
    elif sample.negative_prompt and not leads_away(sample):
        yield Problem("sample.negative_prompt", "nothing leads away from it; add sample.guidance")


def leads_away(sample: Sample) -> bool:
    """Whether some guidance leads away from the negative text."""
    return any(use.name not in (*BEHIND, "auto") for use in sample.guidance)


def levels_that_join_are_averaged(sample: Sample, model: Model, diffusion: Diffusion) -> Iterator[Problem]:
    """An outer level joins by what its pooled picture says; where frames are picked it is another picture."""
    if sample.outer_from is None:
        return
    settings = [level.network.settings for level in model.levels]
    if any(getattr(one, "layout", None) == "grid" and one.frames > 1 for one in settings):
        yield Problem("sample.outer_from", "is for pictures, not for grids of frames; leave it out")
    elif diffusion.frame_pooling == "pick" and any(clip_frames(level) > 1 for level in model.levels):
        yield Problem(
            "sample.outer_from",
            "needs frames of inner levels that are averages, and diffusion.frame_pooling picks; leave it out",
        )


def core_and_text_agree(model: Model, text: Use | None) -> Iterator[Problem]:
    """The core is built for features of the width that the text encoder's settings say."""
    if text is not None and not isinstance(getattr(text.settings, "width", None), int):
        yield Problem(
            "text", f"text_encoder {text.name!r} has no setting 'width', which the core is built for"
        )
    if text is None and model.levels:
        core = model.levels[0].network.settings
        for name in ("cond_width", "text_layers"):
            if getattr(core, name, None):
                yield Problem(("model", "levels", 0, name), "needs a text encoder; add a [text] table")


def padding_is_the_same_for_all(model: Model, text: Use | None) -> Iterator[Problem]:
    """A core that looks at padding must not see how long the other captions of a batch are."""
    if text is None or not model.levels:
        return
    if getattr(model.levels[0].network.settings, "masked_cross_attention", True):
        return
    if getattr(text.settings, "max_tokens", 1) is None:
        yield Problem(
            "text.max_tokens",
            "without it padding depends on the batch, and the core looks at padding "
            "(masked_cross_attention = false); say that of the encoder that the data were packed with",
        )
    if getattr(text.settings, "pad", None) == "batch":
        yield Problem(
            "text.pad",
            "'batch' makes a caption's padding depend on the captions beside it, and the core looks at "
            "padding (masked_cross_attention = false); say 'max', or 'exact' to draw as released models do",
        )


# guidance that asks for an unconditional answer, and what acts on guidance
PAIRED = ("cfg", "cfgpp", "cfg_zero", "apg")
BEHIND = ("rescale", "interval")


def guidance_needs_dropout(sample: Sample, train: Train, text: Use | None) -> Iterator[Problem]:
    """Classifier-free guidance subtracts an unconditional prediction, which only caption dropout trains."""
    for i, use in enumerate(sample.guidance):
        if use.name in PAIRED and text is None:
            yield Problem(("sample", "guidance", i), f"'{use.name}' needs a text encoder; add a [text] table")
        elif use.name in PAIRED and train.caption_dropout == 0:
            yield Problem(
                ("sample", "guidance", i),
                f"'{use.name}' needs unconditional training; set train.caption_dropout, e.g. 0.1",
            )
        elif use.name in BEHIND and i == 0:
            yield Problem(
                ("sample", "guidance", i),
                f"'{use.name}' changes the guidance in front of it, and there is none; put e.g. 'cfg' there",
            )


def requirements_hold(requires: tuple[str, ...]) -> Iterator[Problem]:
    """Every package that the recipe requires is installed in a version that it allows."""
    if not requires:
        return
    from packaging.requirements import InvalidRequirement, Requirement

    for i, text in enumerate(requires):
        path = ("requires", i)
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            yield Problem(path, f"expected a package with a version range, like 'acme>=1.2', got {text!r}")
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Problem(path, f"{requirement.name} is not installed; pip install '{text}'")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield Problem(path, f"this recipe requires {text}, but {version} is installed")


def shells_are_allowed(data: Data, allow_pipe: bool) -> Iterator[Problem]:
    """A `pipe:` URL runs a shell, so a recipe alone must not be enough to have one."""
    if allow_pipe:
        return
    for path, text in strings(data.source.settings):
        if any("pipe:" in url.lower() for url in braces_expanded(text)):
            yield Problem(("data", *path), "a pipe: URL runs a shell command; allow it with --allow-pipe")


RULES: tuple[Callable[..., Iterable[Problem]], ...] = (
    levels_exist,
    levels_nest,
    level_weights_match,
    thresholds_match_levels,
    steps_stand_once,
    growth_ends_whole,
    micro_batches_divide,
    levels_are_shared_out,
    levels_are_trained,
    batch_feeds_levels,
    by_source_reads_pictures,
    pictures_stand_beside_clips,
    rows_pass_given_levels,
    some_levels_are_drawn,
    given_levels_are_not_examined,
    a_cascade_gives_its_levels,
    prompts_need_text,
    levels_that_join_are_averaged,
    core_and_text_agree,
    padding_is_the_same_for_all,
    guidance_needs_dropout,
    requirements_hold,
    shells_are_allowed,
)


def uses(value: Any, path: Path = ()) -> Iterator[tuple[Path, Use]]:
    """Every component that a recipe (or a part of it) picks, with its path; nested ones too."""
    if isinstance(value, Use):
        yield path, value
        yield from uses(value.settings, path)
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from uses(item, (*path, i))
    elif attrs.has(type(value)):
        for field in attrs.fields(type(value)):
            inside = path if field.metadata.get("flat") else (*path, field.name)
            yield from uses(getattr(value, field.name), inside)


def strings(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every string in settings, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Use):
        yield from strings(value.settings, path)
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from strings(item, (*path, i))
    elif attrs.has(type(value)):
        for field in attrs.fields(type(value)):
            yield from strings(getattr(value, field.name), (*path, field.name))


GROUP = re.compile(r"\{([^{}]*)\}")


def braces_expanded(text: str, limit: int = 256) -> Iterator[str]:
    """The texts that brace patterns stand for, as far as letters go: number ranges stay as they are.

    Past `limit` texts the pattern itself with all braces and commas taken out stands for the rest.
    """
    waiting, seen = [text], 0
    while waiting:
        current = waiting.pop()
        match = next((m for m in GROUP.finditer(current) if "," in m[1] or re.search(r"[^\d.]", m[1])), None)
        if match is None or seen + len(waiting) > limit:
            yield current if match is None else re.sub(r"[{},]", "", current)
            seen += 1
            continue
        waiting += [current[: match.start()] + part + current[match.end() :] for part in match[1].split(",")]
