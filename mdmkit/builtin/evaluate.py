"""Settings and registrations of the built-in components: what is measured of any model. No torch."""

from __future__ import annotations

import attrs

from mdmkit.plugins.component import Component
from mdmkit.recipe.options import opt

__all__ = ["COMPONENTS", "Fidelity", "Likelihood", "VideoFidelity"]


@attrs.frozen
class Likelihood:
    """Variational bounds of the data's pictures at every level, in bits per dimension."""

    draws: int = opt(16, "noise levels a picture, evenly over logsnr; 16 or more", ge=1)
    logsnr_max: float = opt(12.0, "where pixels are read: as near to it as the schedule comes")
    seed: int = opt(0, "of the noise", ge=0)


@attrs.frozen
class Fidelity:
    """Frechet and kernel distance of drawn pictures from those of the data, by torch-fidelity."""

    weights: str = opt(help="the extractor's file; mdmkit-words: made by mdmkit extractor")
    extractor: str = opt("mdmkit-words", "a torch-fidelity feature extractor, as inception-v3-compat")
    data: int = opt(2048, "pictures of the data to compare with", ge=2)
    subsets: int = opt(100, "draws of the kernel distance", ge=1)
    subset_size: int = opt(1000, "pictures a draw; all where there are fewer", ge=2)
    seed: int = opt(0, "of those draws", ge=0)


@attrs.frozen
class VideoFidelity:
    """Frechet and kernel distance of drawn clips from those of the data, by torch-fidelity."""

    weights: str = opt(help="the extractor's file; mdmkit-words: made by mdmkit extractor, i3d: TorchScript")
    extractor: str = opt("mdmkit-words", "a feature extractor of clips in torch-fidelity, as i3d")
    data: int = opt(2048, "clips of the data to compare with", ge=2)
    subsets: int = opt(100, "draws of the kernel distance", ge=1)
    subset_size: int = opt(1000, "clips a draw; all where there are fewer", ge=2)
    seed: int = opt(0, "of those draws", ge=0)


COMPONENTS: list[Component] = [
    Component("metric", "fidelity", Fidelity, "mdmkit.evaluate.fidelity:Fidelity"),
    Component("metric", "video_fidelity", VideoFidelity, "mdmkit.evaluate.fidelity:VideoFidelity"),
    Component("metric", "likelihood", Likelihood, "mdmkit.evaluate.likelihood:Likelihood"),
]
