"""Networks: a U-Net core, shells around it, the nest that runs them. Needs torch, nothing of the registry."""

from .attention import Attend, ImageAttention, TextLayer, sdpa
from .blocks import Block, Downsample, ResBlock, Upsample
from .core import UNetCore
from .embed import Embedding
from .frames import FrameDownsample, FrameUpsample
from .nest import Core, NestedUNet, Shell
from .shell import UNetShell
from .temporal import FrameAttention, FrameConv, FrameShift, TemporalLayer
from .unet import Running, Text
from .video import TemporalAttention, TemporalDownsample, TemporalUpsample

__all__ = [
    "Attend",
    "Block",
    "Core",
    "Downsample",
    "Embedding",
    "FrameAttention",
    "FrameConv",
    "FrameDownsample",
    "FrameShift",
    "FrameUpsample",
    "ImageAttention",
    "NestedUNet",
    "ResBlock",
    "Running",
    "Shell",
    "TemporalAttention",
    "TemporalDownsample",
    "TemporalLayer",
    "TemporalUpsample",
    "Text",
    "TextLayer",
    "UNetCore",
    "UNetShell",
    "Upsample",
    "sdpa",
]
