"""The pictures of a run: grids of its prompts, and what its metrics say of others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdmkit.errors import MdmkitError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mdmkit.plugins import Registry
    from mdmkit.recipe.schema import Recipe
    from mdmkit.sampling.draw import Drawing
    from mdmkit.sampling.sequence import Link

    from .run_told import Told

__all__ = [
    "captions_of",
    "drawn",
    "draws",
    "grids",
    "lacks_inner",
    "measure",
    "reads_prompts",
    "said",
    "save_metrics",
]


def grids(
    recipe: Recipe,
    registry: Registry,
    parts: Any,
    folder: Path,
    step: int,
    told: Told,
    device: torch.device,
    *,
    stage: int = 0,
) -> None:
    """Draw the recipe's prompts with the weights as they are now: one labelled grid a level.

    Of clips a contact sheet, their frames side by side.
    """
    from mdmkit import cascade
    from mdmkit.evaluate.clips import contact_sheet
    from mdmkit.evaluate.grid import grid, grid_path, save_image

    if not reads_prompts(parts.text):
        told.once(
            "no_grid", "no pictures are drawn: text features are packed and text.encoder names no encoder"
        )
        told.event(step, "not_sampled", {"cause": "cached text features without an encoder for prompts"})
        return
    if lacks_inner(recipe, stage):
        told.once("no_grid", "no pictures are drawn: levels are given (diffusion.given), by no model here")
        told.event(step, "not_sampled", {"cause": "given levels that no model of this run draws"})
        return
    captions = list(recipe.sample.prompts) or captions_of(parts.dataset, recipe.sample.count)
    inner = cascade.before(
        folder / "checkpoints", stage, recipe, registry, device=device, text=parts.text
    )
    pyramids = drawn(
        recipe,
        registry,
        parts.nest,
        parts.text,
        captions,
        device,
        seed=recipe.sample.seed,
        batch=recipe.sample.batch,
        inner=inner,
    )
    for level, size in enumerate(parts.resolutions):
        page = grid if len(size) == 2 else contact_sheet
        picture = page([pyramid[level].cpu() for pyramid in pyramids], captions)
        save_image(grid_path(folder, step=step, level=level), picture)
        for logger in told.loggers:
            logger.images(step, f"level {level} ({' x '.join(map(str, size))})", picture)


def measure(
    recipe: Recipe,
    registry: Registry,
    metrics: Mapping[str, Any],
    nest: nn.Module,
    text: Any,
    dataset: Any,
    device: torch.device,
    *,
    inner: Sequence[Link] = (),
) -> dict[str, Any]:
    """What metrics say of pictures drawn for the data's captions, or of the network, by "metric.name".

    The pictures drawn are others than those of the grids: their seeds lie a million further on. `inner`: the
    models that draw the levels that this one is given.

    Raises:
        MdmkitError: a component refuses, as an encoder a caption, or a metric all of them.
    """
    import torch

    from mdmkit import assemble

    shown = {name: metric for name, metric in metrics.items() if draws(metric)}
    captions = captions_of(dataset, recipe.evaluate.count) if shown else []
    # once: it may load a model that guides
    drawing = assemble.drawing(recipe, registry, device=device) if shown else None
    seed, batch = recipe.sample.seed + 1_000_000, max(recipe.sample.batch, 64)
    for first in range(0, len(captions), batch):  # not all pictures at once: there may be thousands
        part = list(captions[first : first + batch])
        told = {"seed": seed + first, "batch": batch, "drawing": drawing, "inner": inner}
        pyramids = drawn(recipe, registry, nest, text, part, device, **told)
        top = torch.stack([pyramid[-1] for pyramid in pyramids])
        for name, metric in shown.items():
            with one_line(f"metric {name}"):  # as of clips with too few frames for it
                metric.update(top, part)
    comparing = [metric for metric in shown.values() if hasattr(metric, "beside")]
    with one_line("evaluate"):
        compare(recipe, registry, comparing, dataset, device)
    examine(recipe, registry, [m for m in metrics.values() if not draws(m)], nest, text, dataset, device)
    results: dict[str, Any] = {}
    for name, metric in metrics.items():
        with one_line(f"metric {name}"):  # as of captions that it cannot judge
            results |= {f"{name}.{key}": value for key, value in metric.result().items()}
    return results


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turn a component's refusal into one line that says whose it is."""
    try:
        yield
    except ValueError as error:
        raise MdmkitError(f"{what}: {error}") from error


def compare(
    recipe: Recipe, registry: Registry, metrics: Sequence[Any], dataset: Any, device: torch.device
) -> None:
    """Show pictures of the data to the metrics that compare with them: to each as many as it wants."""
    from .data_pictures import plain_pictures

    seen, most = 0, max((metric.data for metric in metrics), default=0)
    for pictures in plain_pictures(recipe, registry, dataset, device, count=most, batch=64):
        for metric in metrics:
            if seen < metric.data:
                metric.beside(pictures[: metric.data - seen])
        seen += len(pictures)


def examine(
    recipe: Recipe,
    registry: Registry,
    metrics: Sequence[Any],
    nest: nn.Module,
    text: Any,
    dataset: Any,
    device: torch.device,
) -> None:
    """Show the network and pictures of the data to the metrics that want them, in training's precision."""
    if not metrics:
        return
    import torch

    from mdmkit import assemble
    from mdmkit.train.parallel import autocast

    from .data_pictures import data_pictures

    if recipe.diffusion.given:
        raise MdmkitError(
            f"evaluate: the model is given {recipe.diffusion.given} of its levels (diffusion.given), and can "
            "be looked at as one that draws them all no more; measure pictures that it draws"
        )

    diffusion, training = assemble.diffusion(recipe, registry), nest.training
    nest.eval()
    try:
        with torch.no_grad(), autocast(recipe.run.precision, device):
            for denoise, pictures, positions in data_pictures(
                recipe, registry, nest, text, dataset, device,
                count=recipe.evaluate.count, batch=recipe.sample.batch,
            ):  # fmt: skip
                for metric in metrics:
                    metric.examine(denoise, diffusion, pictures, positions)
    except ValueError as error:
        raise MdmkitError(f"evaluate: {error}") from error
    finally:
        nest.train(training)


def draws(metric: Any) -> bool:
    """Whether a metric looks at drawn pictures, and not at the network on the data's own."""
    return hasattr(metric, "update")


def save_metrics(path: Path, results: Mapping[str, Any]) -> None:
    """Write what was measured as JSON."""
    path.write_text(json.dumps(results, indent=1), encoding="utf-8")


def said(results: Mapping[str, Any]) -> str:
    """What was measured, a line a number."""
    return "\n".join(f"{key:40} {value:.4f}" for key, value in results.items())


def reads_prompts(text: Any) -> bool:
    """Whether pictures can be drawn for captions: packed features have an encoder for them, or not."""
    return getattr(text, "reads_prompts", True)


def drawn(
    recipe: Recipe,
    registry: Registry,
    nest: nn.Module,
    text: Any,
    captions: list[str],
    device: torch.device,
    *,
    seed: int,
    batch: int,
    drawing: Drawing | None = None,
    inner: Sequence[Link] = (),
) -> list[tuple[torch.Tensor, ...]]:
    """Pyramids of pictures for captions, in the precision of the training, as the recipe or `drawing` says.

    `inner`: the models that draw the levels that this one is given.

    Raises:
        MdmkitError: a component refuses, as an encoder a caption.
    """
    from mdmkit import assemble
    from mdmkit.sampling.sequence import Link, draw_in_sequence
    from mdmkit.train.parallel import autocast

    try:
        with autocast(recipe.run.precision, device):
            how = drawing or assemble.drawing(recipe, registry, device=device)
            model = Link(nest, text, assemble.diffusion(recipe, registry), how)
            return draw_in_sequence(
                [*inner, model],
                resolutions=assemble.resolutions(recipe),
                captions=captions,
                negative=recipe.sample.negative_prompt,
                seed=seed,
                batch=batch,
                device=device,
            )
    except ValueError as error:
        raise MdmkitError(f"sample: {error}") from error


def lacks_inner(recipe: Recipe, stage: int) -> bool:
    """Whether a model of the first stage, which no other draws for, is given levels."""
    return stage == 0 and recipe.diffusion.given > 0


def captions_of(dataset: Any, count: int) -> list[str]:
    """Captions to draw for: those that the dataset names, else those of its first samples."""
    if hasattr(dataset, "captions"):
        return list(dataset.captions(count))
    return [dataset.sample(position).caption for position in range(count)]
