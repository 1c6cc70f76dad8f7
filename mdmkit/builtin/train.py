"""Settings and registrations of the built-in components: train. No torch."""

from __future__ import annotations

import attrs

from mdmkit.plugins.component import Component
from mdmkit.recipe.options import opt

__all__ = ["COMPONENTS", "AdamW", "Constant", "Cosine", "TensorBoard", "Warmup"]


@attrs.frozen
class AdamW:
    """Adam with decoupled weight decay, fused."""

    lr: float = opt(1e-4, "learning rate, before the schedule's factor", gt=0.0)
    betas: tuple[float, float] = opt((0.9, 0.99), "decays of the two moments", ge=0.0, lt=1.0)
    eps: float = opt(1e-8, "keeps the division finite", gt=0.0)
    weight_decay: float = opt(0.0, "decoupled weight decay", ge=0.0)
    decay_vectors: bool = opt(False, "weight decay on biases and norm gains too")


@attrs.frozen
class Constant:
    """The learning rate as it is, at every step."""


@attrs.frozen
class Warmup:
    """Linear warmup, then constant."""

    steps: int = opt(1000, "steps until the full learning rate", ge=0)


@attrs.frozen
class Cosine:
    """Linear warmup, then half a cosine down to a final factor."""

    steps: int = opt(help="step at which the final factor is reached", ge=1)
    warmup: int = opt(0, "steps of linear warmup, a part of `steps`", ge=0)
    final: float = opt(0.0, "factor at the end", ge=0.0, le=1.0)


@attrs.frozen
class TensorBoard:
    """Scalars and sample grids for TensorBoard, in the run's tensorboard/ folder."""

    flush_seconds: float = opt(30.0, "seconds until written events are on disk", gt=0.0)


COMPONENTS: list[Component] = [
    Component("optimizer", "adamw", AdamW, "mdmkit.train.optim:adamw"),
    Component("lr_schedule", "constant", Constant, "mdmkit.train.lr:Constant"),
    Component("lr_schedule", "warmup", Warmup, "mdmkit.train.lr:Warmup"),
    Component("lr_schedule", "cosine", Cosine, "mdmkit.train.lr:Cosine"),
    Component("logger", "tensorboard", TensorBoard, "mdmkit.train.logs:TensorBoard"),
]
