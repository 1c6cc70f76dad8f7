"""Editing: variations of a picture, and pictures of which a part or a level is known.

Values for `sample_pyramid(start=..., known=...)`; they go together, with every rule, guidance and threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs
import torch
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.pyramid import Pyramid, normalize_resolution, pool, pyramid
from mdmkit.targets import to_eps

from .coarse import enlarged, level_scale
from .denoise import Denoise, Denoised, with_x0

__all__ = ["Given", "Known", "Start", "known_frames", "known_low", "known_region"]


@attrs.frozen(eq=False)
class Start:
    """Begin with noisy pictures, at t = `strength`, and not with noise alone: variations of the pictures.

    `pictures`: a pyramid in [-1, 1], low to high, one row for all or a row each. At strength 0 they come out
    as they are, at 1 nothing is left of them. *SDEdit*, arXiv 2108.01073, algorithm 1. Raises ValueError
    where strength is outside [0, 1].
    """

    pictures: Pyramid = attrs.field(converter=tuple)
    strength: float = 0.6

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(
                f"expected strength in [0, 1], got {self.strength}; 0 is the picture itself, 1 another one"
            )

    def check(self, shapes: Sequence[Sequence[int]], rows: int) -> None:
        """ValueError where the pictures are not of these shapes, or not one row or `rows`."""
        if len(self.pictures) < len(shapes):
            raise ValueError(
                f"expected pictures to start from at {len(shapes)} levels, got {len(self.pictures)}; "
                "mdmkit.pyramid.pyramid makes them of one"
            )
        check_sizes("picture to start from", self.pictures, shapes, rows)


@attrs.frozen(eq=False)
class Known:
    """What is known of pictures: at the innermost levels, `pictures` wherever `masks` are true.

    `pictures`: a pyramid in [-1, 1] of as many levels as something is known of; `masks`: bool, (1 or B, 1 or
    C, ...) each. One row for all or a row each. At every step the known part stands in for the denoiser's
    answer, so that it comes out exactly, and goes through the noise on the way, where the network sees it and
    fits the rest to it. *Score-Based Generative Modeling through SDEs*, arXiv 2011.13456, appendix I.2; an
    approximation of the conditional distribution, as the rest never sees the known part without noise; rules
    that add fresh noise (`ddpm`, the `_sde` ones) let it fit better than others. Levels beyond those of
    `pictures` are moved to have their average wherever it is known: *DDNM*, arXiv 2212.00490, eq. 13.

    `pick`: the frames of inner levels are picked (`mdmkit.pyramid.pool`), so that of the levels beyond only
    those are moved.

    `passes` above 1: every stretch of `jump` steps but the first is gone through so often, with fresh noise
    to go back by, so that what was decided without the known part is decided again with it, at so many times
    the cost: *RePaint*, arXiv 2201.09865, section 4.2. Raises ValueError where one of them is below 1.
    """

    pictures: Pyramid = attrs.field(converter=tuple)
    masks: Pyramid = attrs.field(converter=tuple)
    passes: int = 1
    jump: int = 5
    pick: bool = False

    def __attrs_post_init__(self) -> None:
        if self.passes < 1 or self.jump < 1:
            raise ValueError(
                f"expected passes and jump of at least 1, got {self.passes} and {self.jump}; 1 pass "
                "goes back nowhere"
            )
        if len(self.pictures) != len(self.masks):
            raise ValueError(
                f"expected a mask for each of {len(self.pictures)} levels, got {len(self.masks)}"
            )
        for level, (picture, mask) in enumerate(zip(self.pictures, self.masks, strict=True)):
            fits = mask.ndim == picture.ndim and all(
                m in (1, p) for m, p in zip(mask.shape[:2], picture.shape[:2], strict=True)
            )
            if mask.dtype != torch.bool or not fits or mask.shape[2:] != picture.shape[2:]:
                raise ValueError(
                    f"expected a bool mask (1 or {len(picture)}, 1 or {picture.shape[1]}, "
                    f"{', '.join(map(str, picture.shape[2:]))}) at level {level}, as the picture is, got "
                    f"{tuple(mask.shape)} {str(mask.dtype).removeprefix('torch.')}"
                )

    def wrap(self, denoise: Denoise, diffusion: Diffusion) -> Denoise:
        """A denoiser that knows it."""
        known = diffusion.scaled(self.pictures)

        def denoise_rest(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
            said = denoise(z, at)
            x0 = list(said.x0)
            for r, (picture, mask) in enumerate(zip(known, self.masks, strict=True)):
                if r < len(x0):
                    x0[r] = torch.where(mask.to(x0[r].device), picture.to(x0[r]), x0[r])
            top = len(known) - 1
            for r in range(top + 1, len(x0)):
                # outside, the average over each pixel that is known
                wanted = known[top].to(x0[r]) * level_scale(diffusion, r, top)
                off = wanted - pool(x0[r], wanted.shape[2:], pick=self.pick)
                off = torch.where(self.masks[top].to(off.device), off, 0.0)
                x0[r] = x0[r] + enlarged(off, x0[r].shape[2:], pick=self.pick)
            return with_x0(said, tuple(x0), at)

        return denoise_rest

    def check(self, shapes: Sequence[Sequence[int]], rows: int) -> None:
        """ValueError where the pictures are not of these shapes, or not one row or `rows`."""
        check_sizes("known picture", self.pictures, shapes, rows)


@attrs.frozen(eq=False)
class Given:
    """Pictures of the inner levels that a model does not draw but is given (`Diffusion.given`).

    `pictures`: a pyramid in [-1, 1] of those levels, one row for all or a row each; `noise`: standard normal,
    like them. The network sees them as in training, at every step; they come out as they are.
    """

    pictures: Pyramid = attrs.field(converter=tuple)
    noise: Pyramid = attrs.field(converter=tuple)

    def wrap(self, denoise: Denoise, diffusion: Diffusion) -> Denoise:
        """A denoiser that is given them, whatever the trajectory has at their levels."""
        x0 = diffusion.scaled([x.to(eps) for x, eps in zip(self.pictures, self.noise, strict=True)])
        shown = tuple(diffusion.shown(x, eps) for x, eps in zip(x0, self.noise, strict=True))

        def denoise_rest(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
            count = min(len(z), len(shown))
            said = denoise((*shown[:count], *z[count:]), at)
            # eps is about the trajectory, which the network has not seen
            inner = zip(x0[:count], z, at.alpha, at.sigma, strict=False)
            eps = tuple(to_eps(x, noisy, alpha, sigma, "x0") for x, noisy, alpha, sigma in inner)
            return Denoised((*x0[:count], *said.x0[count:]), (*eps, *said.eps[count:]))

        return denoise_rest


def check_given(given: Sequence[Tensor] | None, diffusion: Diffusion, levels: int) -> None:
    """ValueError unless there are pictures of as many levels as the model is given, and one more is drawn."""
    came = 0 if given is None else len(given)
    if came != diffusion.given:
        raise ValueError(
            f"expected pictures of the {diffusion.given} inner levels that the model is given, got {came}"
            + ("; draw them with another model, or give a picture" if came < diffusion.given else "")
        )
    if levels <= came:
        raise ValueError(
            f"expected more than the {came} levels that the model is given, got {levels}: it draws none of "
            "those"
        )


def stretches(
    path: Sequence[NoiseLevel], passes: int, jump: int
) -> Iterator[tuple[list[NoiseLevel], str]]:
    """The parts of a path to go through one after another; those that are gone through again have a name."""
    for first in range(0, len(path) - 1, jump):
        for again in range(passes if first else 1):  # before the first there is noise alone
            yield list(path[first : first + jump + 1]), f"pass {again} from {first}" if again else ""


def known_region(
    picture: Tensor,
    mask: Tensor,
    resolutions: Sequence[int | Sequence[int]],
    *,
    frames: Sequence[int] | None = None,
    pick: bool = False,
) -> Known:
    """Inpainting and outpainting: `picture (1 or B, C, H, W)` is known where `mask (1 or B, 1, H, W)` is 1.

    Clips (1 or B, C, F, H, W) have masks (1 or B, 1, F, H, W). At an inner level a pixel is known where the
    whole of what it is the average of is: what the picture shows under the mask's zeros has no influence.
    `frames` and `pick` as for `pyramid`. Raises ValueError where the mask has another size than the picture,
    or other values than 0 and 1.
    """
    if mask.ndim != picture.ndim or mask.shape[2:] != picture.shape[2:]:
        raise ValueError(
            f"expected a mask of the picture's size, {tuple(picture.shape[2:])}, got "
            f"{tuple(mask.shape[2:])}; resize one of the two"
        )
    mask = mask.to(torch.float32)
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"expected a mask of 0 (drawn) and 1 (known), got values from {mask.min():g} to {mask.max():g}; "
            "compare it with 0.5"
        )
    masks = tuple(level == 1 for level in pyramid(mask, resolutions, frames=frames, pick=pick))
    pictures = pyramid(picture, resolutions, frames=frames, pick=pick)
    return Known(pictures, masks, pick=pick)


def known_frames(
    given: Mapping[int, Tensor], resolutions: Sequence[Sequence[int]], *, pick: bool = False
) -> Known:
    """Clips of which frames are given, (1 or B, C, H, W) each, by their place; negative from the end.

    The first alone: a picture begins to move. The first few: a clip goes on. First and last: what lies
    between. `resolutions`: (frames, height, width) of the levels, the frames being of the highest. At an
    inner level a frame is known where all are that it is the average of, or, with `pick`, where it is.
    Raises ValueError for places that the clip has not, and frames of another size.
    """
    size = tuple(resolutions[-1])
    if len(size) != 3 or not given:
        raise ValueError(f"expected frames of a clip (frames, height, width), got {len(given)} of {size}")
    if odd := [place for place in given if not -size[0] <= place < size[0]]:
        raise ValueError(f"expected places in a clip of {size[0]} frames, got {odd[0]}")
    rows = max(len(frame) for frame in given.values())
    some = next(iter(given.values()))
    clip, mask = some.new_zeros(rows, some.shape[1], *size), some.new_zeros(1, 1, *size)
    for place, frame in given.items():
        if tuple(frame.shape[2:]) != size[1:]:
            raise ValueError(f"expected frames of {size[1:]}, got {tuple(frame.shape[2:])}; resize it")
        clip[:, :, place], mask[:, :, place] = frame, 1
    return known_region(clip, mask, resolutions, pick=pick)


def known_low(
    picture: Tensor, resolutions: Sequence[int | Sequence[int]], *, pick: bool = False
) -> Known:
    """Super-resolution: all of a low level is known, and what lies inside it.

    `picture (1 or B, C, [F,] H, W)` is of the size of one of `resolutions`, `pick` as for `pool`. Raises
    ValueError where it is not.
    """
    sizes = [normalize_resolution(resolution) for resolution in resolutions]
    if tuple(picture.shape[2:]) not in sizes:
        raise ValueError(
            f"expected a picture of a level's size, one of {', '.join(map(str, sizes))}, got "
            f"{tuple(picture.shape[2:])}; resize it"
        )
    inner = sizes[: sizes.index(tuple(picture.shape[2:])) + 1]
    pictures = tuple(pool(picture, size, pick=pick) for size in inner)
    masks = tuple(torch.ones_like(level[:1, :1], dtype=torch.bool) for level in pictures)
    return Known(pictures, masks, pick=pick)


def check_sizes(
    what: str, pictures: Sequence[Tensor], shapes: Sequence[Sequence[int]], rows: int
) -> None:
    for level, (picture, shape) in enumerate(zip(pictures, shapes, strict=False)):
        if tuple(picture.shape[1:]) != tuple(shape) or len(picture) not in (1, rows):
            count = "1" if rows == 1 else f"1 or {rows}"
            raise ValueError(
                f"expected a {what} ({count}, {', '.join(map(str, shape))}) at level {level}, got "
                f"{tuple(picture.shape)}"
            )
