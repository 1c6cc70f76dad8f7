"""Our feature extractors among torch-fidelity's, `mdmkit-words` and `i3d`; importing registers them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mdmkit import torchvision_ops

from .words import load

torchvision_ops.declare()  # torch-fidelity imports torchvision

try:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
except ModuleNotFoundError as missing:
    raise ImportError(f"{missing}; fidelity needs torch-fidelity: pip install 'mdmkit[metrics]'") from missing

__all__ = ["I3D", "WORDS", "I3DExtractor", "OneLayer", "WordsExtractor"]

WORDS, I3D = "mdmkit-words", "i3d"


class OneLayer(FeatureExtractorBase):
    """An extractor whose features are those of one layer, of weights in a file.

    `takes`: "pictures" or "clips", as a metric asks for before it gives any; torch-fidelity's own say nothing
    and take pictures. `facts`: what the file says of the network.
    """

    LAYER: ClassVar[str] = "features"
    takes: str = "pictures"

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: Path | str | None = None,
        **_: Any,
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise ValueError(f"{name} has no weights of its own; give the file of its network")
        self.facts: dict[str, Any] = {}
        self.net = self.read(feature_extractor_weights_path)

    def read(self, path: Path | str) -> nn.Module:
        """The network of a file."""
        raise NotImplementedError

    @classmethod
    def get_provided_features_list(cls) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (cls.LAYER,)

    @classmethod
    def get_default_feature_layer_for_metric(cls, metric: str) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return cls.LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> None:
        return None


class WordsExtractor(OneLayer):
    """The averaged last layer of a `WordsNet`, of pictures or of clips as it has learned.

    `facts` has its accuracy on what was kept apart.
    """

    LAYER = "average"

    def read(self, path: Path | str) -> nn.Module:
        net, self.facts = load(path)
        self.takes = "pictures" if net.frames is None else "clips"
        return net

    def forward(self, input: Tensor) -> tuple[Tensor]:
        """Features (B, D) of pictures uint8 (B, 3, H, W), or clips (B, 3, F, H, W)."""
        return (self.net.features(input.float() / 127.5 - 1),)  # pyright: ignore[reportCallIssue]


class I3DExtractor(OneLayer):
    """The logits of I3D, a network of the actions of Kinetics-400 (arXiv 1705.07750), over clips.

    The file is the TorchScript one that Fréchet video distances (arXiv 1812.01717) are usually taken with,
    `i3d_torchscript.pt`: a module `(x, rescale, resize, return_features)` that takes clips (B, 3, F, H, W) of
    pixels in [0, 255], brings them to [-1, 1] and 224 x 224 pixels, and gives (B, 400). It needs about ten
    frames; ValueError for clips that it refuses, and for another file.
    """

    LAYER = "logits"
    takes = "clips"
    TOGETHER: ClassVar[int] = 4  # clips; at 224 x 224 pixels they are large

    def read(self, path: Path | str) -> nn.Module:
        with warnings.catch_warnings():
            # torch asks for another format; the weights that others compare with are in this one
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
            try:
                return torch.jit.load(str(path), map_location="cpu")
            except RuntimeError as error:
                said = str(error).partition(".")[0]
                raise ValueError(
                    f"{path} cannot be read as TorchScript: {said}; {I3D} takes the usual i3d_torchscript.pt"
                ) from error

    def forward(self, input: Tensor) -> tuple[Tensor]:
        """Logits (B, 400) of clips uint8 (B, 3, F, H, W)."""
        told = {"rescale": True, "resize": True, "return_features": True}
        try:
            parts = [self.net(clips.float(), **told) for clips in input.split(self.TOGETHER)]
        except (RuntimeError, torch.jit.Error) as error:
            said = str(error).strip().splitlines()[-1].partition("Error: ")[2]
            raise ValueError(
                f"{I3D} refuses clips of (F, H, W) = {tuple(input.shape[2:])}: {said}; the usual file takes "
                "about ten frames or more"
            ) from error
        return (torch.cat(parts),)


for _name, _extractor in ((WORDS, WordsExtractor), (I3D, I3DExtractor)):
    if _name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(_name, _extractor)
