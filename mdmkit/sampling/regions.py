"""Several prompts in one picture: each prompt's answer counts where its mask says, at every level."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from mdmkit.diffusion import NoiseLevel
from mdmkit.pyramid import Pyramid, normalize_resolution, pyramid

from .denoise import Answers, Denoise, Denoised, Denoiser

__all__ = ["Regional", "Regions", "composed", "shares_of"]


def shares_of(
    masks: Tensor, resolutions: Sequence[int | Sequence[int]], *, rest: bool = True
) -> tuple[Tensor, ...]:
    """How much each prompt counts at each pixel of each level: (P, 1, H_r, W_r), low to high, 1 in sum.

    `masks (R, 1, H, W)` in [0, 1], of the highest of `resolutions`. Where they overlap, each counts by its
    share of their sum; with `rest`, what they leave is that of a prompt for everywhere else, which comes
    first (P = R + 1). Lower levels have the average, as pictures do. Raises ValueError for masks of another
    size, for other values, and without `rest` where no mask says anything.
    """
    if masks.ndim != 4 or masks.shape[1] != 1 or not len(masks):
        raise ValueError(f"expected masks (regions, 1, height, width), got {tuple(masks.shape)}")
    masks = masks.to(torch.float32)
    if not ((masks >= 0) & (masks <= 1)).all():  # NaN too
        raise ValueError(
            f"expected masks from 0 (elsewhere) to 1 (here), got values from {masks.min():g} to "
            f"{masks.max():g}; divide them by the largest"
        )
    total = masks.sum(0, keepdim=True)
    if not rest and (empty := int((total == 0).sum())):
        raise ValueError(
            f"expected a mask for every pixel, got none for {empty} of {total.numel()}; add one, or a prompt "
            "for the rest"
        )
    shares = masks / total.clamp(min=1 if rest else 1e-12)
    if rest:
        shares = torch.cat([1 - shares.sum(0, keepdim=True), shares])
    size = normalize_resolution(resolutions[-1])
    if tuple(masks.shape[2:]) != size:
        raise ValueError(
            f"expected masks of the picture's size, {size[0]} x {size[1]}, got {masks.shape[2]} x "
            f"{masks.shape[3]}; resize them"
        )
    return pyramid(shares, resolutions)


@attrs.frozen(eq=False)
class Regions:
    """Prompts for parts of every picture, and where each counts: `masks (R, 1, H, W)`, see `shares_of`.

    A picture's own prompt holds for what the masks leave. `sizes`: (height, width) of all levels, the masks
    being of the highest, where only inner ones are drawn. Raises ValueError where there is not one a prompt.
    """

    prompts: tuple[str, ...] = attrs.field(converter=tuple)
    masks: Tensor
    sizes: tuple[tuple[int, ...], ...] | None = None

    def __attrs_post_init__(self) -> None:
        if not self.prompts or len(self.prompts) != len(self.masks):
            raise ValueError(
                f"expected a mask for each of {len(self.prompts)} prompts, at least one, got "
                f"{len(self.masks)}"
            )


def composed(said: Denoised, shares: Sequence[Tensor]) -> Denoised:
    """One picture a sample of what is said for its prompts: rows (P B, ...), those of a prompt together.

    At each pixel the average by the prompts' shares (P, 1, H_r, W_r), of x0 and of eps, which so lead to the
    same z as each prompt's do. *MultiDiffusion*, arXiv 2302.08113, eq. 5.
    """

    def averaged(levels: Pyramid) -> Pyramid:
        return tuple(
            (level.unflatten(0, (len(share), -1)) * share.unsqueeze(1).to(level)).sum(0)
            for level, share in zip(levels, shares, strict=False)
        )

    return Denoised(averaged(said.x0), averaged(said.eps))


class Regional:
    """A denoiser of pictures with several prompts, by one batch of all their rows; guidance goes around it.

    `prompts`: a denoiser of P B rows: those of the first prompt for B pictures, then those of the second, and
    so on (`Denoiser(nest, diffusion, cond=torch.cat([first, second]))`). `shares (P, 1, H_r, W_r)` a level,
    as `shares_of` gives them. `absent`: the same of (P + 1) B rows, the last for the absence of all text;
    guidance that leads away from that needs it.
    """

    def __init__(
        self, prompts: Denoise, shares: Sequence[Tensor], *, absent: Denoise | None = None
    ) -> None:
        self.prompts, self.shares, self.absent = prompts, tuple(shares), absent

    def __call__(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        """The answer for all prompts, each where it counts."""
        return composed(self.prompts(repeated(z, len(self.shares[0])), at), self.shares)

    def carrying(self) -> Regional:
        """The same for one trajectory after another, as `Denoiser.carrying`."""
        prompts, absent = (
            one.carrying() if isinstance(one, Denoiser) else one for one in (self.prompts, self.absent)
        )
        assert prompts is not None
        return Regional(prompts, self.shares, absent=absent)

    def plain(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        """The answer for all prompts, each where it counts."""
        return self(z, at)

    def answers(self, z: Sequence[Tensor], at: NoiseLevel) -> Answers:
        """The answer for all prompts, which is gone on with."""
        cond = self(z, at)
        return Answers(cond, None, cond)

    def both(self, z: Sequence[Tensor], at: NoiseLevel) -> tuple[Denoised, Denoised]:
        """The answer for all prompts, and the unconditional one, of a single batch.

        Raises ValueError where the denoiser has no `absent`.
        """
        if self.absent is None:
            raise ValueError("guidance needs the absence of text too: give the regional denoiser `absent`")
        said = self.absent(repeated(z, len(self.shares[0]) + 1), at)
        rows = len(z[0])
        cond, uncond = (
            Denoised(*(tuple(level[part] for level in levels) for levels in said))
            for part in (slice(None, -rows), slice(-rows, None))
        )
        return composed(cond, self.shares), uncond


def repeated(z: Sequence[Tensor], times: int) -> Pyramid:
    """All rows, so many times one after another."""
    return tuple(torch.cat([level] * times) for level in z)
