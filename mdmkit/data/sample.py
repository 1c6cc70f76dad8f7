"""What a dataset hands over for one position. No torch."""

from __future__ import annotations

import attrs
import numpy as np

__all__ = ["Sample"]


@attrs.frozen(eq=False)
class Sample:
    """A captioned picture: `image` uint8 (H, W, 3), `size` (h, w) of the original."""

    image: np.ndarray
    caption: str
    key: str
    size: tuple[int, int]
    features: np.ndarray | None = None
    features_mask: np.ndarray | None = None
    skipped: tuple[str, ...] = ()
