"""What pictures are drawn for: text features of each and of its absence, from an encoder or stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .denoise import stack_texts, stack_weights

__all__ = ["Conditions", "Encode", "between", "encoded", "read", "stored"]

# captions to features (B, L, D), mask (B, L) and, from those that weigh tokens, weights (B, L)
Encode = Callable[[Sequence[str]], tuple[Tensor, ...]]


class Conditions(NamedTuple):
    """Text features, a row a picture: `cond (B, L, D)` with `cond_mask (B, L)`, and of what guidance leads
    away from, `uncond` with `uncond_mask` (None: guidance has nothing to lead away from). All None: no text.
    `cond_weights (B, L)`, `uncond_weights`: how much each token counts, all alike where None.
    """

    cond: Tensor | None = None
    cond_mask: Tensor | None = None
    uncond: Tensor | None = None
    uncond_mask: Tensor | None = None
    cond_weights: Tensor | None = None
    uncond_weights: Tensor | None = None

    @property
    def pictures(self) -> int:
        """How many pictures they are for, 0 where there is no text."""
        return 0 if self.cond is None else len(self.cond)

    def rows(self, rows: Sequence[int], device: torch.device | str) -> Conditions:
        """Those of some pictures, on a device."""
        index = torch.tensor(list(rows), dtype=torch.int64)
        return Conditions(*(x if x is None else x[index.to(x.device)].to(device) for x in self))


def encoded(
    encode: Encode | None,
    captions: Sequence[str],
    negative: str,
    *,
    batch: int,
    apart: bool,
    regions: Sequence[str] = (),
) -> Iterator[tuple[list[int], Conditions]]:
    """Batches of at most `batch` pictures: their indices, and their captions and `negative` encoded.

    A caption that stands in a batch more than once is encoded once. `regions`: more prompts for every
    picture; `cond` then has the captions' rows, a picture each, and behind them those of each region.

    `apart`: for a network that looks at padding. Each caption is encoded with `negative` and the regions
    alone, and only those that come out equally long are drawn together, so that no picture sees how long the
    captions of others are. That is how the released sampler does it, which draws for one caption at a time.
    """
    away = None if encode is None or apart else whole(encode([negative]))
    beside = None if encode is None or apart or not regions else whole(encode(list(regions)))
    for first in range(0, len(captions), batch):
        part = list(captions[first : first + batch])
        if encode is None:
            yield list(range(first, first + len(part))), Conditions()
        elif away is not None:
            row_of = {caption: row for row, caption in enumerate(dict.fromkeys(part))}
            rows = [row_of[caption] for caption in part]
            prompts = [picked(whole(encode(list(row_of))), rows)]
            if beside is not None:
                prompts += [picked(beside, [row] * len(part)) for row in range(len(regions))]
            yield (
                list(range(first, first + len(part))),
                of_both(stacked(prompts), picked(away, [0] * len(part))),
            )
        else:
            texts = {
                caption: whole(encode([caption, *regions, negative])) for caption in dict.fromkeys(part)
            }
            by_length: dict[int, list[int]] = {}
            for i, caption in enumerate(part):
                by_length.setdefault(texts[caption][0].shape[1], []).append(i)
            for alike in by_length.values():
                several = [texts[part[i]] for i in alike]
                by_prompt = [
                    stacked([picked(text, [row]) for text in several]) for row in range(len(regions) + 2)
                ]
                yield [first + i for i in alike], of_both(stacked(by_prompt[:-1]), by_prompt[-1])


Told = tuple[Tensor, Tensor | None, Tensor | None]  # features, their mask, weights of the tokens


def whole(encoded: tuple[Tensor, ...]) -> Told:
    """What an encoder gave, with no weights where it weighs nothing."""
    features, mask, *weights = encoded
    return features, mask, weights[0] if weights else None


def picked(text: Told, rows: Sequence[int]) -> Told:
    """Some rows of a text."""
    features, mask, weights = (None if x is None else x[list(rows)] for x in text)
    assert features is not None
    return features, mask, weights


def stacked(texts: Sequence[Told]) -> Told:
    """Texts one after another; of different lengths, the shorter ones are padded, and masked there."""
    features, mask = stack_texts(*((features, mask) for features, mask, _ in texts))
    return features, mask, stack_weights(*((features, weights) for features, _, weights in texts))


def of_both(cond: Told, uncond: Told) -> Conditions:
    return Conditions(*cond[:2], *uncond[:2], cond[2], uncond[2])


def stored(
    conditions: Conditions, *, batch: int, device: torch.device | str
) -> Iterator[tuple[list[int], Conditions]]:
    """Batches of at most `batch` pictures of stored features: their indices, and their rows on the device.

    Where `uncond` is longer or shorter than `cond`, the shorter of the two is padded: a network that looks
    at padding is told the same length with guidance and, at times without, the condition alone.
    """
    cond, cond_mask, uncond, uncond_mask, *weights = conditions
    if cond is None:
        raise ValueError("stored conditions need cond; draw without text by captions and no encoder")
    if cond_mask is None:
        cond_mask = torch.ones(cond.shape[:2], dtype=torch.bool, device=cond.device)
    if uncond is not None:
        if uncond_mask is None:
            uncond_mask = torch.ones(uncond.shape[:2], dtype=torch.bool, device=uncond.device)
        length = max(cond.shape[1], uncond.shape[1])
        cond, uncond = (F.pad(x, (0, 0, 0, length - x.shape[1])) for x in (cond, uncond))
        cond_mask, uncond_mask = (F.pad(x, (0, length - x.shape[1])) for x in (cond_mask, uncond_mask))
        uncond, uncond_mask = uncond.expand(len(cond), -1, -1), uncond_mask.expand(len(cond), -1)
    if uncond is not None:
        weights = [x if x is None else F.pad(x, (0, cond.shape[1] - x.shape[1]), value=1.0) for x in weights]
        weights[1] = weights[1] if weights[1] is None else weights[1].expand(len(cond), -1)
    every = Conditions(cond, cond_mask, uncond, uncond_mask, *weights)
    for first in range(0, len(cond), batch):
        indices = list(range(first, min(first + batch, len(cond))))
        yield indices, every.rows(indices, device)


def between(ends: Conditions, weights: Sequence[float]) -> Conditions:
    """Texts on the way from the first to the second row of `ends`: a row for each weight in [0, 1].

    Features, and their tokens' weights, are averaged token by token; at 0 and 1 they are the ends as they
    are. On the way the shorter text's last token stands against what the longer one has more, so that where
    lengths differ the first step from the end with the shorter one is a larger one. Raises ValueError where
    there are not two rows, or for a weight outside [0, 1].
    """
    if ends.pictures != 2 or ends.cond is None:
        raise ValueError(f"expected two texts to go between, got {ends.pictures}")
    if odd := [weight for weight in weights if not 0 <= weight <= 1]:
        raise ValueError(f"expected weights in [0, 1], from the first text to the second, got {odd[0]}")
    mask = ends.cond_mask
    if mask is None:
        mask = torch.ones(ends.cond.shape[:2], dtype=torch.bool, device=ends.cond.device)
    mask = mask.bool()
    length = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * length).amax(1)
    places = [torch.where(m, length, n) for m, n in zip(mask, last, strict=True)]
    first, second = (x[place] for x, place in zip(ends.cond, places, strict=True))
    rows = {0.0: mask[0], 1.0: mask[1]}
    both = mask.any(0)
    away = {
        name: None if x is None else x[:1].expand(len(weights), *x.shape[1:])
        for name, x in ends._asdict().items()
        if name.startswith("uncond")
    }
    token_weights = None
    if ends.cond_weights is not None:
        one, other = (x[place] for x, place in zip(ends.cond_weights, places, strict=True))
        token_weights = torch.stack([torch.lerp(one, other, w) for w in weights])
    return Conditions(
        # padding is zero for the networks that look at it
        torch.stack([
            torch.lerp(first, second, w) * rows.get(w, both).unsqueeze(-1) for w in weights
        ]),
        torch.stack([rows.get(w, both) for w in weights]),
        cond_weights=token_weights,
        **away,
    )


def read(file: Path) -> Conditions:
    """Conditions of a safetensors file: `features` (N, L, D) and `mask` (N, L), which may be left out where
    every row has L tokens; `negative_features` (N or 1, L', D), or (L', D) for all, and `negative_mask`.

    ValueError where it cannot be read, has other tensors or shapes that do not fit together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: cannot be read as safetensors: {error}") from error
    known = ("features", "mask", "negative_features", "negative_mask")
    if odd := sorted(tensors.keys() - set(known)):
        raise ValueError(f"{file}: unknown tensor {odd[0]!r} (known: {', '.join(known)})")
    cond, cond_mask = _pair(file, tensors, "features", "mask")
    uncond, uncond_mask = _pair(file, tensors, "negative_features", "negative_mask")
    if cond is None:
        raise ValueError(f"{file}: has no tensor 'features'")
    if uncond is not None and (len(uncond) not in (1, len(cond)) or uncond.shape[2] != cond.shape[2]):
        raise ValueError(
            f"{file}: expected negative_features (1 or {len(cond)}, L, {cond.shape[2]}), as features are "
            f"{tuple(cond.shape)}, got {tuple(uncond.shape)}"
        )
    if uncond is not None and uncond_mask is not None:
        uncond, uncond_mask = uncond.expand(len(cond), -1, -1), uncond_mask.expand(len(cond), -1)
    return Conditions(cond, cond_mask, uncond, uncond_mask)


def _pair(
    file: Path, tensors: Mapping[str, Tensor], name: str, mask_name: str
) -> tuple[Tensor | None, Tensor | None]:
    features, mask = tensors.get(name), tensors.get(mask_name)
    if features is None:
        if mask is not None:
            raise ValueError(f"{file}: has {mask_name} without {name}")
        return None, None
    if name.startswith("negative") and features.ndim == 2:
        features, mask = features[None], None if mask is None else mask[None]
    if features.ndim != 3 or 0 in features.shape or not features.is_floating_point():
        raise ValueError(
            f"{file}: expected {name} (rows, tokens, width), floating, got {tuple(features.shape)} "
            f"{str(features.dtype).removeprefix('torch.')}"
        )
    if mask is None:
        mask = torch.ones(features.shape[:2], dtype=torch.bool)
    if mask.shape != features.shape[:2]:
        raise ValueError(
            f"{file}: expected {mask_name} {tuple(features.shape[:2])}, as {name} are "
            f"{tuple(features.shape)}, got {tuple(mask.shape)}"
        )
    # padding is zero for the networks that look at it, whatever an encoder left there
    return features.float() * (mask := mask.bool()).unsqueeze(-1), mask
