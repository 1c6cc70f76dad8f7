"""Pictures from captions: batches, guidance rows and seeds around one update rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import attrs
import torch
from torch import Tensor, nn

from mdmkit.diffusion import Diffusion, NoiseLevel

from .conditions import Conditions, Encode, encoded, stored
from .denoise import Denoised, Denoiser, PairedDenoise
from .edit import Known, Start
from .guidance import Guidance
from .rules import Rule
from .sample import sample_pyramid
from .seeds import Seed
from .spacing import Spacing
from .threshold import Threshold
from .windows import Windows

__all__ = ["Drawing", "draw"]


@attrs.frozen
class Drawing:
    """How pictures are drawn: the update rule, its steps, what wraps the denoiser, when outer levels run."""

    rule: Rule
    spacing: Spacing
    threshold: Threshold
    guidance: tuple[Guidance, ...] = ()
    steps: int = 50
    outer_from: float | None = None


@torch.no_grad()
def draw(
    nest: nn.Module,
    text: Encode | None,
    diffusion: Diffusion,
    drawing: Drawing,
    *,
    resolutions: Sequence[tuple[int, int]],
    captions: Sequence[str] = (),
    negative: str = "",
    conditions: Conditions | None = None,
    seed: int = 0,
    seeds: Sequence[Seed] | None = None,
    start: Start | None = None,
    known: Known | None = None,
    windows: Windows | None = None,
    batch: int = 16,
    device: torch.device | str = "cpu",
    noise_device: torch.device | str | None = None,
    callback: Callable[[Sequence[int], int, NoiseLevel, Denoised], None] | None = None,
) -> list[tuple[Tensor, ...]]:
    """One pyramid of pictures (3, H_r, W_r) in [-1, 1], low to high, a caption; picture i has seed + i.

    `resolutions` are those of the inner levels to run (all of them for full pictures). Guidance leads away
    from the text `negative`. `conditions`: features to draw for, in the place of captions and encoder.
    `seeds`: one a picture, in the place of seed + i. `start` and `known` (`mdmkit.sampling.edit`) hold for
    every picture: of one row. `windows`: ask the network for pieces of larger `resolutions`.
    `callback(indices, step, at, denoised)` sees the predictions on the way for the pictures of a batch. A
    picture depends on its caption, `negative` and its seed only, not on `batch` or on its neighbours.
    """
    if seeds is not None and len(seeds) != (count := conditions.pictures if conditions else len(captions)):
        raise ValueError(f"expected a seed for each of {count} pictures, got {len(seeds)}")
    drawn: dict[int, tuple[Tensor, ...]] = {}
    training = nest.training
    nest.eval()
    try:
        if conditions is not None:
            batches = stored(conditions, batch=batch, device=device)
        else:
            apart = getattr(nest, "sees_padding", False)
            batches = encoded(text, captions, negative, batch=batch, apart=apart)
        for indices, told in batches:
            denoiser = Denoiser(nest, diffusion, **told._asdict())

            def make(denoiser: Denoiser = denoiser) -> PairedDenoise:
                return guided(denoiser.fresh(), drawing.guidance)

            z = sample_pyramid(
                make() if windows is None else windows.wrap(make),
                diffusion,
                shapes=[(3, *size) for size in resolutions],
                seeds=[seed + i if seeds is None else seeds[i] for i in indices],
                rule=drawing.rule,
                steps=drawing.steps,
                spacing=drawing.spacing,
                threshold=drawing.threshold,
                outer_from=drawing.outer_from,
                start=start,
                known=known,
                device=device,
                noise_device=noise_device,
                callback=None if callback is None else partial(callback, indices),
            )
            drawn |= {i: tuple(level[row] for level in z) for row, i in enumerate(indices)}
    finally:
        nest.train(training)
    return [drawn[i] for i in range(len(drawn))]


def guided(denoise: PairedDenoise, guidance: Sequence[Guidance]) -> PairedDenoise:
    """The denoiser in its guidance, the first one innermost."""
    for one in guidance:
        denoise = one.wrap(denoise)
    return denoise
