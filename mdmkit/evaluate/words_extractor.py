"""`mdmkit-words`: our network of words as a feature extractor of torch-fidelity; importing registers it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from mdmkit import torchvision_ops

from .words import load

torchvision_ops.declare()  # torch-fidelity imports torchvision

try:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
except ModuleNotFoundError as missing:
    raise ImportError(f"{missing}; fidelity needs torch-fidelity: pip install 'mdmkit[metrics]'") from missing

__all__ = ["NAME", "WordsExtractor"]

NAME = "mdmkit-words"
LAYER = "average"


class WordsExtractor(FeatureExtractorBase):
    """The averaged last layer of a `WordsNet`, from the file that `feature_extractor_weights_path` names.

    `facts`: what the file says of the network, its accuracy on pictures kept apart among it.
    """

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: Path | str | None = None,
        **_: Any,
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise ValueError(f"{NAME} has no weights of its own; give the file of a network that was learned")
        self.net, self.facts = load(feature_extractor_weights_path)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> None:
        return None

    def forward(self, input: Tensor) -> tuple[Tensor]:
        """Features (B, D) of pictures uint8 (B, 3, H, W)."""
        return (self.net.features(input.float() / 127.5 - 1),)


if NAME not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor(NAME, WordsExtractor)
