"""Networks: a U-Net core, shells around it, the nest that runs them. Needs torch, nothing of the registry."""

from .attention import Attend, ImageAttention, TextLayer, sdpa
from .blocks import Block, Downsample, ResBlock, Upsample
from .core import UNetCore
from .embed import Embedding
from .nest import Core, NestedUNet, Shell
from .shell import UNetShell
from .unet import Running, Text
from .video import TemporalAttention, TemporalDownsample, TemporalUpsample

__all__ = [
    "Attend",
    "Block",
    "Core",
    "Downsample",
    "Embedding",
    "ImageAttention",
    "NestedUNet",
    "ResBlock",
    "Running",
    "Shell",
    "TemporalAttention",
    "TemporalDownsample",
    "TemporalUpsample",
    "Text",
    "TextLayer",
    "UNetCore",
    "UNetShell",
    "Upsample",
    "sdpa",
]
