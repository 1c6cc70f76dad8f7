"""Layers that start at zero, so that what they end joins a trained network without changing it."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

__all__ = ["zeroed"]

Layer = TypeVar("Layer", nn.Linear, nn.Conv1d, nn.Conv2d)


def zeroed(layer: Layer) -> Layer:
    """The layer with weight and bias at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
