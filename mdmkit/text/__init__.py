"""Text encoders: captions to features and a mask. Importing this imports torch, never transformers."""

from .bytes import BytesEncoder
from .cached import CachedEncoder
from .classes import ClassEncoder
from .encoder import TextEncoder
from .pretrained import HFEncoder, T5Encoder
from .weighted import WeightedPrompts

__all__ = [
    "BytesEncoder",
    "CachedEncoder",
    "ClassEncoder",
    "HFEncoder",
    "T5Encoder",
    "TextEncoder",
    "WeightedPrompts",
]
