"""Fidelity: how far drawn pictures, or clips, as a whole lie from those of the data, by torch-fidelity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .extractors import WORDS  # they make torch-fidelity importable, and are registered there

__all__ = ["Fidelity", "VideoFidelity", "distances"]


def distances(
    drawn: Tensor, real: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Distances of two sets of features (B, D): `frechet`, and `kernel` with its spread over subsets.

    Fréchet: of normal distributions of their means and covariances (FID with Inception's features, arXiv
    1706.08500); it is larger for fewer pictures, so that only equal counts compare. Kernel: the squared
    maximum mean discrepancy of a cubic kernel, unbiased, over `subsets` draws of at most `subset_size`
    pictures (KID, arXiv 1801.01401). Computed in float64.
    """
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    drawn, real = drawn.double().cpu(), real.double().cpu()
    ends = [fid_features_to_statistics(features) for features in (drawn, real)]
    told: dict[str, Any] = {"kid_subsets": subsets, "rng_seed": seed, "verbose": False}
    told["kid_subset_size"] = min(subset_size, len(drawn), len(real))
    kernel = kid_features_to_metric(drawn, real, **told)
    return {
        "frechet": fid_statistics_to_metric(*ends, verbose=False)[KEY_METRIC_FID],
        "kernel": kernel[KEY_METRIC_KID_MEAN],
        "kernel_spread": kernel[KEY_METRIC_KID_STD],
    }


class Fidelity:
    """Fréchet and kernel distance of drawn pictures from the data's, in the features of an extractor.

    weights: the extractor's file; nothing is downloaded. For `mdmkit-words` one that `mdmkit.evaluate.words`
        has made, for others the state that torch-fidelity's class of that name loads.
    extractor: a feature extractor's name in torch-fidelity, as `inception-v3-compat`; anyone may register
        more there.
    data: how many pictures of the data to compare with; where there are more drawn ones, so many.
    subsets, subset_size, seed: of the kernel distance.

    `result` holds what `distances` gives, `pictures` and `data` (how many), and of `mdmkit-words` as
    `extractor_accuracy` the share of held-out pictures that it reads rightly. Raises ValueError for an
    unknown extractor, for weights that are not there or learned from clips, and where fewer than two pictures
    of a kind were seen.
    """

    what: ClassVar[str] = "pictures"
    shape: ClassVar[tuple[str, ...]] = ("B", "3", "H", "W")

    def __init__(
        self,
        *,
        weights: str,
        extractor: str = WORDS,
        data: int = 2048,
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
        from torch_fidelity.utils import create_feature_extractor

        if extractor not in FEATURE_EXTRACTORS_REGISTRY:
            known = ", ".join(sorted(FEATURE_EXTRACTORS_REGISTRY))
            raise ValueError(f"unknown extractor {extractor!r} (known: {known})")
        if not Path(weights).is_file():
            raise ValueError(f"expected the weights of {extractor} in {weights!r}, there is no such file")
        self.layer = FEATURE_EXTRACTORS_REGISTRY[extractor].get_default_feature_layer_for_metric("fid")
        told = {"feature_extractor_weights_path": str(weights), "verbose": False}
        self.extractor = create_feature_extractor(extractor, [self.layer], cuda=False, **told).to(device)
        takes = getattr(self.extractor, "takes", "pictures")
        if takes != self.what:
            raise ValueError(
                f"expected an extractor of {self.what}, but {extractor} of {weights!r} takes {takes}"
            )
        self.told = {"subsets": subsets, "subset_size": subset_size, "seed": seed}
        self.data, self.device = data, device
        self.drawn: list[Tensor] = []
        self.real: list[Tensor] = []

    def update(self, pictures: Tensor, captions: Sequence[str]) -> None:
        """Takes drawn pictures (B, 3, H, W) in [-1, 1]."""
        self.drawn.append(self.features(pictures))

    def beside(self, pictures: Tensor) -> None:
        """Takes pictures of the data (B, 3, H, W) in [-1, 1]."""
        self.real.append(self.features(pictures))

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Features (B, D) of pictures as 8 bits show them."""
        if pictures.ndim != len(self.shape) or pictures.shape[1] != 3:
            expected = f"{self.what} ({', '.join(self.shape)})"
            raise ValueError(f"expected {expected}, got {tuple(pictures.shape)}")
        shown = ((pictures.detach().float().to(self.device) + 1) * 127.5).round().clamp(0, 255)
        return self.extractor(shown.to(torch.uint8))[0].cpu()

    def result(self) -> dict[str, float]:
        """The distances over all pictures so far."""
        drawn, real = (sum(map(len, seen)) for seen in (self.drawn, self.real))
        if min(drawn, real) < 2:
            raise ValueError(
                f"expected at least 2 drawn {self.what} and 2 of the data, got {drawn} and {real}"
            )
        found = distances(torch.cat(self.drawn), torch.cat(self.real), **self.told)
        found |= {self.what: float(drawn), "data": float(real)}
        if "accuracy" in (facts := getattr(self.extractor, "facts", {})):
            found["extractor_accuracy"] = float(facts["accuracy"])
        return found


class VideoFidelity(Fidelity):
    """Fréchet and kernel distance of drawn clips from the data's, in the features of an extractor of clips.

    As `Fidelity`, of clips (B, 3, F, H, W); a picture is a clip of one frame. extractor: `mdmkit-words` with
    a network that was learned from clips, or `i3d` with the usual file of it (FVD, arXiv 1812.01717). Anyone
    may register more in torch-fidelity, whose `takes` is "clips": they are given uint8 (B, 3, F, H, W).

    `result` has `clips` in the place of `pictures`.
    """

    what = "clips"
    shape = ("B", "3", "F", "H", "W")

    def features(self, pictures: Tensor) -> Tensor:
        """Features (B, D) of clips as 8 bits show them."""
        return super().features(pictures.unsqueeze(2) if pictures.ndim == 4 else pictures)
