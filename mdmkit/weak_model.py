"""The other model that guidance asks, opened from its folder and compared with the one that draws."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdmkit.errors import WrongInput

if TYPE_CHECKING:
    import torch

    from mdmkit.plugins import Registry
    from mdmkit.recipe.schema import Recipe
    from mdmkit.sampling.auto import OverModel
    from mdmkit.sampling.draw import Weak

__all__ = ["check", "opened"]


def opened(
    guidance: OverModel, recipe: Recipe, registry: Registry, *, device: torch.device | str = "cpu"
) -> Weak:
    """The guidance with its model, which may have fewer levels, another network, prediction and encoder.

    A frozen encoder that both recipes say alike is not loaded again: the model is told the same features.

    Raises:
        WrongInput: there is no model, or it is of other pictures or noise levels; names the first difference.
        MdmkitError: the folder is not whole.
    """
    from mdmkit import assemble, model_folder
    from mdmkit.sampling.draw import Weak

    folder, theirs = check(guidance, recipe, registry)
    own = theirs.text is not None and (theirs.text != recipe.text or learns(theirs, registry))
    try:
        nest, text = model_folder.load(
            folder, theirs, registry, device=device, weights=guidance.weights, encoder=own
        )
    except WrongInput as error:
        raise WrongInput(f"sample.guidance: weak: {error}") from error
    return Weak(
        guidance=guidance,
        nest=nest.eval(),
        diffusion=assemble.diffusion(theirs, registry),
        levels=min(len(theirs.model.levels), len(recipe.model.levels)),
        text=text,
        told=theirs.text is not None,
    )


def check(guidance: OverModel, recipe: Recipe, registry: Registry) -> tuple[Path, Recipe]:
    """The folder of the model that a guidance names, and its recipe; nothing is loaded.

    Raises:
        WrongInput: as `opened`.
    """
    from mdmkit import model_folder
    from mdmkit.recipe import load
    from mdmkit.train.folder import RESOLVED

    path = Path(guidance.weak).expanduser()
    if not path.is_dir():
        raise WrongInput(
            f"sample.guidance: weak: {guidance.weak}: no such folder; expected a checkpoint, a run folder or "
            "a model folder"
        )
    try:
        folder = model_folder.find(path)
        theirs = load(folder / RESOLVED, [], registry, allow_pipe=True)  # no data is read
    except WrongInput as error:
        raise WrongInput(f"sample.guidance: weak: {error}") from error
    difference = next(differences(theirs, recipe, registry), None)
    if difference is not None:
        what, came, wanted = difference
        raise WrongInput(
            f"sample.guidance: weak: {guidance.weak} does not fit: {what}: it has {came}, the model that "
            f"draws {wanted}"
        )
    return folder, theirs


def learns(recipe: Recipe, registry: Registry) -> bool:
    """Whether the text encoder has trained parameters of its own."""
    from mdmkit import assemble

    return getattr(assemble.text_encoder(recipe, registry, device="meta"), "trainable", False)


def differences(theirs: Recipe, ours: Recipe, registry: Registry) -> Iterator[tuple[str, Any, Any]]:
    """What makes the levels that both have other pictures or noise levels: (setting, theirs, ours).

    The prediction space is not among it: every model answers in x0 and eps.
    """
    from mdmkit import assemble
    from mdmkit.recipe.emit import plain
    from mdmkit.start import unlike

    sizes = [assemble.resolutions(recipe) for recipe in (theirs, ours)]
    shared = min(len(levels) for levels in sizes)
    for r in range(shared):
        if sizes[0][r] != sizes[1][r]:
            yield f"model.levels[{r}].resolution", list(sizes[0][r]), list(sizes[1][r])
    frames = [(assemble.frames(recipe) or (1,) * shared)[:shared] for recipe in (theirs, ours)]
    if frames[0] != frames[1]:
        yield "frames", list(frames[0]), list(frames[1])
    for name in ("given", "given_noise") if theirs.diffusion.given or ours.diffusion.given else ():
        yield from unlike(f"diffusion.{name}", *(getattr(one.diffusion, name) for one in (theirs, ours)))
    if theirs.text is not None and ours.text is None:
        yield "text", plain(theirs.text), "none"
    if assemble.draws_clips(ours):
        pooling = [recipe.diffusion.frame_pooling for recipe in (theirs, ours)]
        yield from unlike("diffusion.frame_pooling", *pooling)
    for name in ("schedule", "shift_power", "shift_power_frames", "signal_scale", "signal_scale_power"):
        if shared > 1 or name in ("schedule", "signal_scale"):  # the core is never shifted
            said = [plain(getattr(recipe.diffusion, name)) for recipe in (theirs, ours)]
            yield from unlike(f"diffusion.{name}", *said)
