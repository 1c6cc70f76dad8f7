"""What the network is told of a micro-batch's pictures: text and micro-conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdmkit.data.sample import Batch
from mdmkit.errors import MdmkitError

__all__ = ["micro_conditions", "text_conditions"]


def text_conditions(
    text: nn.Module | None, batch: Batch, drop: Sequence[bool], device: torch.device
) -> dict[str, Any]:
    """`captions` for an encoder that learns (the objective runs it), else `cond` (B, L, D) and `cond_mask`.

    Rows that `drop` names lose their caption: they get the empty string, or its features.

    Raises:
        MdmkitError: features come with the data, but the text encoder reads captions.
    """
    if text is None:
        return {}
    if batch.features is not None and batch.features_mask is not None:
        if not hasattr(text, "dropped"):
            raise MdmkitError(
                'the data bring text features, but the text encoder reads captions; say text.use = "cached", '
                "or data.features = false"
            )
        cond, mask = batch.features.to(device).float(), batch.features_mask.to(device)
        cond, mask = text.dropped(cond, mask, torch.tensor(drop))  # type: ignore[operator]
        return {"cond": cond, "cond_mask": mask}
    captions = ["" if gone else caption for gone, caption in zip(drop, batch.captions, strict=True)]
    if getattr(text, "trainable", False):
        return {"captions": captions}
    with torch.no_grad():
        cond, mask = text(captions)
    return {"cond": cond, "cond_mask": mask}


def micro_conditions(nest: nn.Module, batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """What the levels want to know: `scale` (smaller side), `height`, `width` of the original in pixels.

    `fps` of clips, frames a second, is 0 where that is not known and for pictures; how many `frames` there
    are the network sees itself.

    Raises:
        MdmkitError: a level wants something else.
    """
    wanted = {key for level in nest.levels for key in level.embedding.defaults}  # type: ignore[union-attr]
    wanted.discard("frames")
    fps = torch.zeros(len(batch)) if batch.fps is None else batch.fps
    sizes = {"scale": batch.sizes.min(1).values, "height": batch.sizes[:, 0], "width": batch.sizes[:, 1]}
    known = sizes | {"fps": fps}
    if unknown := sorted(wanted - known.keys()):
        raise MdmkitError(
            f"micro_conditioning: training knows no {unknown[0]!r} of a picture (known: {', '.join(known)})"
        )
    return {key: known[key].to(device).float() for key in sorted(wanted)}
