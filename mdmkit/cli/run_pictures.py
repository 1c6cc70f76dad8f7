"""The pictures of a run: grids of its prompts, and what its metrics say of others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdmkit.errors import MdmkitError

if TYPE_CHECKING:
    import torch

    from mdmkit.plugins import Registry
    from mdmkit.recipe.schema import Recipe

    from .run_told import Told

__all__ = ["grids", "measure"]


def grids(
    recipe: Recipe, registry: Registry, parts: Any, folder: Path, step: int, told: Told, device: torch.device
) -> None:
    """Draw the recipe's prompts with the weights as they are now: one labelled grid a level."""
    from mdmkit.evaluate.grid import grid, grid_path, save_image

    if not getattr(parts.text, "reads_prompts", True):
        told.once(
            "no_grid", "no pictures are drawn: text features are packed and text.encoder names no encoder"
        )
        told.event(step, "not_sampled", {"cause": "cached text features without an encoder for prompts"})
        return
    captions = list(recipe.sample.prompts) or captions_of(parts.dataset, recipe.sample.count)
    pyramids = drawn(
        recipe, registry, parts, captions, device, seed=recipe.sample.seed, batch=recipe.sample.batch
    )
    for level, (height, width) in enumerate(parts.resolutions):
        picture = grid([pyramid[level].cpu() for pyramid in pyramids], captions)
        save_image(grid_path(folder, step=step, level=level), picture)
        for logger in told.loggers:
            logger.images(step, f"level {level} ({height} x {width})", picture)


def measure(recipe: Recipe, registry: Registry, parts: Any, folder: Path, device: torch.device) -> None:
    """The recipe's metrics, over pictures drawn for captions of their own; written to metrics.json."""
    import torch

    from mdmkit import assemble

    metrics = assemble.metrics(recipe, registry, device=device)
    if not metrics or not getattr(parts.text, "reads_prompts", True):
        return
    captions = captions_of(parts.dataset, recipe.evaluate.count)
    results: dict[str, Any] = {}
    pyramids = drawn(
        recipe,
        registry,
        parts,
        captions,
        device,
        seed=recipe.sample.seed + 1_000_000,
        batch=max(recipe.sample.batch, 64),
    )
    top = torch.stack([pyramid[-1] for pyramid in pyramids])
    for name, metric in metrics.items():
        metric.update(top, captions)
        results |= {f"{name}.{key}": value for key, value in metric.result().items()}
    (folder / "metrics.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    for key, value in results.items():
        print(f"{key:40} {value:.4f}", file=sys.stderr)


def drawn(
    recipe: Recipe,
    registry: Registry,
    parts: Any,
    captions: list[str],
    device: torch.device,
    *,
    seed: int,
    batch: int,
) -> list[tuple[torch.Tensor, ...]]:
    """Pyramids of pictures for captions, in the precision of the training.

    Raises:
        MdmkitError: a component refuses, as an encoder a caption.
    """
    from mdmkit import assemble
    from mdmkit.sampling.draw import draw
    from mdmkit.train.parallel import autocast

    try:
        with autocast(recipe.run.precision, device):
            return draw(
                parts.nest,
                parts.text,
                parts.objective.diffusion,
                assemble.drawing(recipe, registry),
                resolutions=parts.resolutions,
                captions=captions,
                negative=recipe.sample.negative_prompt,
                seed=seed,
                batch=batch,
                device=device,
            )
    except ValueError as error:
        raise MdmkitError(f"sample: {error}") from error


def captions_of(dataset: Any, count: int) -> list[str]:
    """Captions to draw for: those that the dataset names, else those of its first samples."""
    if hasattr(dataset, "captions"):
        return list(dataset.captions(count))
    return [dataset.sample(position).caption for position in range(count)]
