"""What a run starts from: the levels of a model folder, and new ones that are grown on top of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mdmkit.errors import WrongInput

if TYPE_CHECKING:
    from torch import Tensor

    from mdmkit.plugins import Registry
    from mdmkit.recipe.options import Use
    from mdmkit.recipe.schema import Recipe

__all__ = ["Start", "find"]

LEVEL = re.compile(r"levels\.(\d+)\.")


@attrs.frozen
class Start:
    """Weights that a run starts from, mapped into memory, by the names of the run's own parameters.

    `weights` says which they are: "ema" or "model". `loaded`, `grown`, `left_out`: levels that both have,
    that only the run has, that only the folder has; each with its number of parameters.
    """

    folder: Path
    weights: str
    stored: Mapping[str, Tensor]
    loaded: Mapping[int, int]
    grown: Mapping[int, int]
    left_out: Mapping[int, int]
    text: int

    def copy_into(self, parameters: Mapping[str, Tensor]) -> None:
        """Give the run's parameters their start; those of grown levels stay as they are."""
        from mdmkit.train.state import copy_into

        copy_into({name: p for name, p in parameters.items() if name in self.stored}, self.stored)

    def facts(self) -> dict[str, Any]:
        """For the log."""
        said = {name: {str(r): n for r, n in getattr(self, name).items()} for name in KINDS}
        return {"folder": str(self.folder), "weights": self.weights, **said, "text": self.text}

    def __str__(self) -> str:
        parts = [
            f"level{'s' * (len(levels) > 1)} {', '.join(map(str, levels))} {said} "
            f"({sum(levels.values()):,} parameters)"
            for said, levels in ((said, getattr(self, name)) for name, said in KINDS.items())
            if levels
        ]
        text = [f"text encoder loaded ({self.text:,} parameters)"] if self.text else []
        return f"starts from {self.folder} ({self.weights}): {'; '.join([*parts, *text])}"

    def digest(self) -> str:
        """SHA-256 of the weights' file."""
        with open(self.folder / f"{self.weights}.safetensors", "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


KINDS = {"loaded": "loaded", "grown": "grown on top", "left_out": "of the folder left out"}


def find(recipe: Recipe, registry: Registry, given: str | None = None) -> Start:
    """What `run.start` of a recipe (or `given`) holds for it, every shared setting and tensor compared.

    Raises:
        WrongInput: there is no model, or a level, the text or the diffusion is another than the recipe says;
            names the first difference.
        MdmkitError: the folder is not whole.
    """
    from mdmkit import assemble, model_folder
    from mdmkit.recipe import load
    from mdmkit.train.folder import RESOLVED
    from mdmkit.train.plan import trained_parameters

    given = given or recipe.run.start
    if given is None:
        raise ValueError("the recipe has no run.start")
    path = Path(given).expanduser()
    if not path.is_dir():
        raise WrongInput(f"run.start: {given}: no such folder; expected a model folder or a run folder")
    try:
        folder = model_folder.find(path)
    except WrongInput as error:
        raise WrongInput(f"run.start: {error}") from error
    theirs = load(folder / RESOLVED, [], registry, allow_pipe=True)  # no data is read
    shared = min(len(theirs.model.levels), len(recipe.model.levels))
    alike = recipe if assemble.draws_clips(theirs) else of_pictures(recipe, shared)
    difference = next(differences(theirs, alike, shared), None)
    if difference is not None:
        raise refused(given, *difference)

    weights = model_folder.picked(folder)
    stored = model_folder.weights_in(folder, weights)
    mine = trained_parameters(
        assemble.nest(recipe, registry, device="meta"), assemble.text_encoder(recipe, registry, device="meta")
    )
    gained = {
        f"levels.{r}.conv_self.weight"
        for r in range(shared)
        if gains_self_conditioning(*(one.model.levels[r].network.settings for one in (theirs, recipe)))
    }
    if alike is not recipe:  # layers along time start as the identity
        plain = assemble.nest(alike, registry, device="meta", levels=shared)
        had = {name for name, _ in plain.named_parameters()}
        gained |= {name for name in mine if 0 <= level_of(name, -1) < shared and name not in had}
    left = {name: x for name, x in stored.items() if level_of(name, -1) >= shared}
    for name in sorted(mine.keys() | stored.keys()):
        if level_of(name, -1) >= shared or name in gained:
            continue
        ours, came = (tuple(x[name].shape) if name in x else None for x in (mine, stored))
        if ours != came:
            raise refused(given, name, came, ours)
    return Start(
        folder=folder,
        weights=weights,
        stored={name: x for name, x in stored.items() if name not in left},
        loaded=counts(mine, range(shared)),
        grown=counts(mine, range(shared, len(recipe.model.levels))),
        left_out=counts(left, range(shared, len(theirs.model.levels))),
        text=sum(x.numel() for name, x in mine.items() if name.startswith("text.")),
    )


def level_of(name: str, otherwise: int) -> int:
    match = LEVEL.match(name)
    return int(match[1]) if match else otherwise


def counts(tensors: Mapping[str, Tensor], levels: range) -> dict[int, int]:
    """Numbers of parameters by level."""
    return {r: sum(x.numel() for name, x in tensors.items() if level_of(name, -1) == r) for r in levels}


def refused(given: str, what: str, theirs: Any, ours: Any) -> WrongInput:
    said = ["nothing" if value is None else value for value in (theirs, ours)]
    return WrongInput(
        f"run.start: {given} does not fit: {what}: it has {said[0]}, the recipe asks for {said[1]}"
    )


def differences(theirs: Recipe, ours: Recipe, shared: int) -> Iterator[tuple[str, Any, Any]]:
    """Settings that make the shared levels another function than the start model's: (path, theirs, ours)."""
    from mdmkit.recipe.checks import clip_frames
    from mdmkit.recipe.emit import plain

    for r in range(shared):
        levels = [plain(recipe.model.levels[r]) for recipe in (theirs, ours)]
        if gains_self_conditioning(*(one.model.levels[r].network.settings for one in (theirs, ours))):
            levels = [{k: v for k, v in level.items() if k != "self_conditioning"} for level in levels]
        if same_strides(*(one.model.levels[r].network.settings for one in (theirs, ours))):
            levels = [{k: v for k, v in level.items() if k != "strides"} for level in levels]
        yield from unlike(f"model.levels[{r}]", *levels)
    for name in ("schedule", "prediction"):
        said = [plain(getattr(recipe.diffusion, name)) for recipe in (theirs, ours)]
        yield from unlike(f"diffusion.{name}", *said)
    for name in ("given", "given_noise") if theirs.diffusion.given or ours.diffusion.given else ():
        yield from unlike(f"diffusion.{name}", *(getattr(one.diffusion, name) for one in (theirs, ours)))
    if shared > 1:  # the core is never shifted
        yield from unlike(
            "diffusion.shift_power", theirs.diffusion.shift_power, ours.diffusion.shift_power
        )
    if any(clip_frames(level) > 1 for level in theirs.model.levels[:shared]):
        for name in ("frame_pooling", "shift_power_frames"):
            yield from unlike(
                f"diffusion.{name}", getattr(theirs.diffusion, name), getattr(ours.diffusion, name)
            )
    yield from unlike_text(theirs.text, ours.text)


def same_strides(theirs: Any, ours: Any) -> bool:
    """Whether strides are the same, written as one number or several."""
    from mdmkit.divisors import triples

    if not all(hasattr(one, "strides") and hasattr(one, "channels") for one in (theirs, ours)):
        return False
    said = [(2,) * (len(one.channels) - 1) if one.strides is None else one.strides for one in (theirs, ours)]
    return triples(said[0]) == triples(said[1])


def of_pictures(recipe: Recipe, shared: int) -> Recipe:
    """The recipe with its first levels as those of pictures; itself where they are."""
    from mdmkit.growth import as_pictures

    levels = [
        attrs.evolve(
            level, network=attrs.evolve(level.network, settings=as_pictures(level.network.settings))
        )
        if r < shared
        else level
        for r, level in enumerate(recipe.model.levels)
    ]
    if levels == list(recipe.model.levels):
        return recipe
    return attrs.evolve(recipe, model=attrs.evolve(recipe.model, levels=tuple(levels)))


def gains_self_conditioning(theirs: Any, ours: Any) -> bool:
    """Whether a level is shown its own estimate from now on: the weights of that are new, and zero."""
    before, now = (getattr(settings, "self_conditioning", False) for settings in (theirs, ours))
    return bool(now and not before)


def unlike_text(theirs: Use | None, ours: Use | None) -> Iterator[tuple[str, Any, Any]]:
    """Differences of the text encoders that change features; a frozen one may come from another folder, in
    another precision, or packed: where it has the same width and layer."""
    from mdmkit.recipe.emit import plain

    if theirs is None or ours is None:
        yield from unlike("text", plain(theirs), plain(ours))
        return
    said = [plain(text.settings) for text in (theirs, ours)]
    names = {name for table in said for name in table}
    if theirs.name != ours.name:
        # whether one of them learns is known from the tensors
        names &= {"width", "layer"} & said[0].keys() & said[1].keys()
    else:
        names -= {"cache", "empty", "encoder", "max_tokens", "model", "pad", "precision", "revision"}
    for name in sorted(names):
        yield from unlike(f"text.{name}", *(table.get(name) for table in said))


def unlike(path: str, theirs: Any, ours: Any) -> Iterator[tuple[str, Any, Any]]:
    """Where two values as TOML has them differ; a component without settings is its name alone there."""
    if isinstance(theirs, dict) and isinstance(ours, str) and "use" in theirs:
        ours = {"use": ours}
    if isinstance(ours, dict) and isinstance(theirs, str) and "use" in ours:
        theirs = {"use": theirs}
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in dict.fromkeys([*theirs, *ours]):
            yield from unlike(f"{path}.{key}", theirs.get(key), ours.get(key))
    elif theirs != ours:
        yield path, theirs, ours
