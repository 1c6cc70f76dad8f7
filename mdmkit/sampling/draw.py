"""Pictures from captions: batches, guidance rows and seeds around one update rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.text import WeightedPrompts

from .auto import OverModel
from .conditions import Conditions, Encode, encoded, stored
from .denoise import Denoised, Denoiser, PairedDenoise, filled, stack_texts, stack_weights
from .edit import Known, Start
from .guidance import Guidance, Interval
from .regions import Regional, Regions, shares_of
from .rules import Rule
from .sample import sample_pyramid
from .seeds import Seed
from .spacing import Spacing
from .threshold import Threshold
from .windows import Windows

__all__ = ["Drawing", "Weak", "draw", "read_by"]

Asked = Denoiser | Regional


@attrs.frozen(eq=False)
class Weak:
    """Guidance that asks another model, and that model: its nest and its process.

    `levels`: how many inner levels the two have in common. `text`: its own encoder; None where `told` says
    the rest: True, it is told the features that the drawing model is told, False, it reads no text.
    """

    guidance: OverModel
    nest: nn.Module
    diffusion: Diffusion
    levels: int
    text: Encode | None = None
    told: bool = True


@attrs.frozen
class Drawing:
    """How pictures are drawn: the update rule, its steps, what wraps the denoiser, when outer levels run.

    `threshold`: one for all levels, or one each, low to high.
    """

    rule: Rule
    spacing: Spacing
    threshold: Threshold | tuple[Threshold, ...]
    guidance: tuple[Guidance | Weak, ...] = ()
    steps: int = 50
    outer_from: float | None = None


@torch.no_grad()
def draw(
    nest: nn.Module,
    text: Encode | None,
    diffusion: Diffusion,
    drawing: Drawing,
    *,
    resolutions: Sequence[Sequence[int]],
    captions: Sequence[str] = (),
    negative: str = "",
    conditions: Conditions | None = None,
    seed: int = 0,
    seeds: Sequence[Seed] | None = None,
    start: Start | None = None,
    known: Known | None = None,
    given: Sequence[Sequence[Tensor]] | None = None,
    windows: Windows | None = None,
    regions: Regions | None = None,
    weighted: bool = False,
    micros: Mapping[str, float] | None = None,
    batch: int = 16,
    device: torch.device | str = "cpu",
    noise_device: torch.device | str | None = None,
    callback: Callable[[Sequence[int], int, NoiseLevel, Denoised], None] | None = None,
) -> list[tuple[Tensor, ...]]:
    """One pyramid of pictures (3, H_r, W_r) in [-1, 1], low to high, a caption; picture i has seed + i.

    `resolutions` are those of the inner levels to run (all of them for full pictures); with frames in front
    clips (3, F_r, H_r, W_r) are drawn, and, with one at each level, a clip model's pictures. Guidance leads
    away from the text `negative`. `conditions`: features to draw for, in the place of captions and encoder.
    `seeds`: one a picture, in the place of seed + i. `start` and `known` (`mdmkit.sampling.edit`) hold for
    every picture: of one row. `given`: for each picture its inner levels (3, H_r, W_r) that the model is
    given and does not draw (`Diffusion.given`). `windows`: ask the network for pieces of larger
    `resolutions`. `regions`: more prompts for parts of every picture. `weighted`: prompts weigh their words
    (`mdmkit.text.weighted.parse`). `micros`: numbers that the network is told of every picture, by name, in
    the place of its defaults (micro-conditioning); a weaker model is told those of them that it reads.
    `callback(indices, step, at, denoised)` sees the predictions on the way for the pictures of a batch. A
    picture depends on its caption, `negative` and its seed only, not on `batch` or on its neighbours.
    """
    if seeds is not None and len(seeds) != (count := conditions.pictures if conditions else len(captions)):
        raise ValueError(f"expected a seed for each of {count} pictures, got {len(seeds)}")
    if given is not None and len(given) != (count := conditions.pictures if conditions else len(captions)):
        raise ValueError(f"expected given levels for each of {count} pictures, got them for {len(given)}")
    if regions is not None and (conditions is not None or windows is not None):
        beside = "windows" if conditions is None else "stored conditions"
        raise ValueError(f"regions go with prompts and pictures of the trained size, not with {beside}")
    for one in drawing.guidance:
        if isinstance(one, Interval):
            one.check(diffusion)  # the denoiser may stand in windows, where sample_pyramid does not see it
    if weighted and text is not None:
        text = WeightedPrompts(text)
    shares = None if regions is None else shares_of(regions.masks.to(device), regions.sizes or resolutions)
    more = () if regions is None else regions.prompts
    drawn: dict[int, tuple[Tensor, ...]] = {}
    training = nest.training
    nest.eval()
    try:
        if conditions is not None:
            batches = stored(conditions, batch=batch, device=device)
        else:
            apart = getattr(nest, "sees_padding", False)
            batches = encoded(text, captions, negative, batch=batch, apart=apart, regions=more)
        for indices, told in batches:
            own = None if conditions is not None else [captions[i] for i in indices]
            rows: dict[str, Any] = {"micros": micros, "pictures": len(indices), "device": device}
            weak = partial(
                weak_denoiser,
                told=told,
                captions=own,
                negative=negative,
                regions=more,
                shares=shares,
                weighted=weighted,
                **rows,
            )
            asked = denoiser(nest, diffusion, told, shares, **rows)
            others = {i: weak(one) for i, one in enumerate(drawing.guidance) if isinstance(one, Weak)}

            # a denoiser may remember what it saw: each trajectory, and each window, has its own
            def make(asked: Asked = asked, others: Mapping[int, Asked] = others) -> PairedDenoise:
                guidance = [
                    one.guidance.over(others[i].carrying(), one.levels) if isinstance(one, Weak) else one
                    for i, one in enumerate(drawing.guidance)
                ]
                return guided(asked.carrying(), guidance)

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
                given=None if given is None else given_rows(given, indices, diffusion.given),
                device=device,
                noise_device=noise_device,
                callback=None if callback is None else partial(callback, indices),
            )
            drawn |= {i: tuple(level[row] for level in z) for row, i in enumerate(indices)}
    finally:
        nest.train(training)
    return [drawn[i] for i in range(len(drawn))]


def given_rows(given: Sequence[Sequence[Tensor]], indices: Sequence[int], levels: int) -> list[Tensor]:
    """The given levels of some pictures as a batch; of a whole pyramid those that count."""
    return [torch.stack([given[i][r] for i in indices]) for r in range(min(levels, len(given[0])))]


def read_by(nest: nn.Module, micros: Mapping[str, float] | None) -> Mapping[str, float] | None:
    """Those of the numbers that a nest reads; all of them for a network that does not say."""
    known = getattr(nest, "micro_conditioning", None)
    if micros is None or known is None:
        return micros
    return {name: value for name, value in micros.items() if name in known}


def denoiser(
    nest: nn.Module,
    diffusion: Diffusion,
    told: Conditions,
    shares: Sequence[Tensor] | None,
    micros: Mapping[str, float] | None = None,
    *,
    pictures: int,
    device: torch.device | str,
) -> Asked:
    """The nest told its text and numbers; of several prompts a picture where there are shares of them."""

    def rows(prompts: int = 1) -> dict[str, Tensor] | None:
        count = prompts * pictures
        where = torch.device(device)
        return {name: filled(value, count, where) for name, value in micros.items()} if micros else None

    if shares is None:
        return Denoiser(nest, diffusion, **told._asdict(), micros=rows())
    if told.cond is None:
        raise ValueError("regions have prompts, but the model reads no text; leave them out")
    prompts = len(shares[0])
    text = {"cond": told.cond, "cond_mask": told.cond_mask, "cond_weights": told.cond_weights}
    absent = None
    if told.uncond is not None:
        cond, mask = stack_texts((told.cond, told.cond_mask), (told.uncond, told.uncond_mask))
        weights = stack_weights((told.cond, told.cond_weights), (told.uncond, told.uncond_weights))
        absent = Denoiser(
            nest, diffusion, cond=cond, cond_mask=mask, cond_weights=weights, micros=rows(prompts + 1)
        )
    return Regional(Denoiser(nest, diffusion, **text, micros=rows(prompts)), shares, absent=absent)


def weak_denoiser(
    weak: Weak,
    *,
    told: Conditions,
    captions: Sequence[str] | None,
    negative: str,
    regions: Sequence[str],
    shares: Sequence[Tensor] | None,
    weighted: bool,
    micros: Mapping[str, float] | None,
    pictures: int,
    device: torch.device | str,
) -> Asked:
    """The other model of a guidance, told the same texts, and the numbers that it reads.

    ValueError where it cannot be told.
    """
    if weak.text is not None and captions is None:
        raise ValueError(
            f"{weak.guidance.weak} reads prompts with its own encoder, and cannot be told stored features or "
            "a way between prompts; draw for prompts, or leave its guidance out"
        )
    if weak.text is not None and captions is not None:
        apart = getattr(weak.nest, "sees_padding", False)
        encode = WeightedPrompts(weak.text) if weighted else weak.text
        texts = list(encoded(encode, captions, negative, batch=len(captions), apart=apart, regions=regions))
        if len(texts) > 1:
            raise ValueError(
                f"{weak.guidance.weak} looks at padding, and its texts differ in length; draw with "
                "sample.batch=1"
            )
        told = texts[0][1]
    elif not weak.told:
        told, shares = Conditions(), None
    few = read_by(weak.nest, micros)
    return denoiser(weak.nest, weak.diffusion, told, shares, few, pictures=pictures, device=device)


def guided(denoise: PairedDenoise, guidance: Sequence[Guidance]) -> PairedDenoise:
    """The denoiser in its guidance, the first one innermost."""
    for one in guidance:
        denoise = one.wrap(denoise)
    return denoise
