"""`mdmkit explain --plot`: a picture of a recipe's noise, and of what a trained model knows when."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mdmkit.errors import MdmkitError, WrongInput
from mdmkit.plugins import KINDS

from .open_model import check_weights, open_model
from .options import open_registry

if TYPE_CHECKING:
    from mdmkit.evaluate.inspection import Inspection
    from mdmkit.plugins import Registry
    from mdmkit.recipe.schema import Recipe

__all__ = ["plot"]

TIMES = 24


def plot(
    what: str,
    path: Path,
    sets: Sequence[str],
    plugins: Sequence[str],
    *,
    count: int,
    weights: str | None,
    allow_pipe: bool,
) -> None:
    """Draw a recipe, or a run or model folder, into a PNG.

    Raises:
        WrongInput: there is no such recipe or model, or an option is wrong.
        MdmkitError: matplotlib is missing, or the file cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MdmkitError("explain --plot needs matplotlib: pip install 'mdmkit[report]'")
    if count < 1:
        raise WrongInput(f"explain --count: expected a number of at least 1, got {count}")
    check_weights("explain", weights)
    kind, slash, _ = what.partition("/")
    if slash and kind in KINDS:
        raise WrongInput(f"explain --plot draws a recipe, a run or a model, got {what!r}")
    from mdmkit import assemble
    from mdmkit.evaluate.inspection_plots import save_plot
    from mdmkit.recipe import load
    from mdmkit.train.folder import one_line_disk_errors

    folder = None
    if Path(what).is_dir():
        folder, recipe, registry = open_model(Path(what), sets, plugins, allow_pipe=allow_pipe)
    else:
        registry = open_registry(plugins)
        recipe = load(what, sets, registry, allow_pipe=allow_pipe)
    diffusion = assemble.diffusion(recipe, registry)
    inspection = None if folder is None else inspect(folder, recipe, registry, count, weights)
    with one_line_disk_errors(path):
        try:
            save_plot(
                path,
                diffusion,
                [
                    f"level {r} ({' x '.join(map(str, size))})"
                    for r, size in enumerate(assemble.resolutions(recipe))
                ],
                title=what if folder is None else f"{what}, {folder.name}",
                sampler=assemble.time_sampler(recipe, registry),
                steps=assemble.spacing(recipe, registry)(recipe.sample.steps, diffusion),
                times=() if inspection is None else inspection.times,
                knowledge=None if inspection is None else inspection.result(),
                pictures=count,
            )
        except FileNotFoundError as error:
            raise WrongInput(f"explain --plot: there is no folder {path.parent}") from error
    print(path)


def inspect(
    folder: Path, recipe: Recipe, registry: Registry, count: int, weights: str | None
) -> Inspection:
    """Show a trained model noisy pictures of its data."""
    import attrs

    from mdmkit import assemble
    from mdmkit.evaluate.inspection import Inspection
    from mdmkit.model_folder import load
    from mdmkit.train.memory import one_line_memory_errors
    from mdmkit.train.parallel import pick_device

    from .run_pictures import examine

    device = pick_device(recipe.run.device)
    inspection = Inspection(
        [(i + 0.5) / TIMES for i in range(TIMES)],
        loss_space=recipe.diffusion.loss_space,
        pixel_loss=assemble.loss(recipe, registry),
        weighting=assemble.weighting(recipe, registry),
        enlarge=assemble.frames(recipe) is None,
    )
    recipe = attrs.evolve(recipe, evaluate=attrs.evolve(recipe.evaluate, count=count))
    with one_line_memory_errors("lower sample.batch (--set sample.batch=4)"):
        dataset = assemble.dataset(recipe, registry)
        nest, text = load(folder, recipe, registry, device=device, weights=weights)
        examine(recipe, registry, [inspection], nest, text, dataset, device)
    return inspection
