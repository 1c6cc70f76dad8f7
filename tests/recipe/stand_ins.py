"""Components of every kind, in place of mdmkit's own: recipes are tested whatever the built-ins are."""

from __future__ import annotations

from typing import Any

import attrs

from mdmkit.builtin import growth
from mdmkit.plugins import Component, Registry, hookimpl, load_registry
from mdmkit.recipe import Use, opt, slot


@attrs.frozen
class Plain:
    """Nothing to set."""


@attrs.frozen
class Cosine:
    """Squared cosine."""

    offset: float = opt(0.008, "keeps the start from being too clean", ge=0.0, lt=1.0)
    clamp: float | None = opt(15.0, "largest logsnr", gt=0.0)


@attrs.frozen
class CosineTwo:
    """Squared cosine, second version."""

    offset: float = opt(0.0, "moved", ge=0.0, lt=1.0)


@attrs.frozen
class Sigmoid:
    """Sigmoid in t."""

    start: float = opt(-3.0)
    end: float = opt(3.0)

    def problems(self):
        if self.end <= self.start:
            yield "end", f"must be greater than start = {self.start}, got {self.end}"


@attrs.frozen
class Resnet:
    """A residual block."""

    norm_groups: int = opt(32, "groups of the norms", ge=1)
    kernel: int | tuple[int, int] = opt(3, "side of the kernel", ge=1)


@attrs.frozen
class Core:
    """A U-Net core."""

    channels: tuple[int, ...] = opt((32, 64), "width of each stage, high resolution to low", ge=1)
    blocks: int | tuple[int, ...] = opt(1, "residual blocks a stage", ge=0)
    strides: tuple[int | tuple[int, ...], ...] | None = opt(None, "between the stages", ge=1)
    block: Use = slot("block", "resnet", "the residual block")
    cond_width: int | None = opt(None, "width of the text inside", ge=1)

    def problems(self):
        blocks = self.blocks
        if isinstance(blocks, tuple) and len(blocks) != len(self.channels):
            yield "blocks", f"expected one entry a stage, {len(self.channels)}, got {len(blocks)}"

    def level_problems(self, *, resolution, inner, index):
        factor = 2 ** (len(self.channels) - 1)
        if inner is None and resolution[0] % factor:
            yield "resolution", f"{resolution[0]} cannot be halved {len(self.channels) - 1} times"
        if inner is not None and resolution[0] != inner[0] * factor:
            stages = len(self.channels)
            yield (
                "resolution",
                (
                    f"{stages} stages take {resolution[0]} down to {resolution[0] // factor}, "
                    f"but levels[{index - 1}] works at {inner[0]}"
                ),
            )


@attrs.frozen
class Shell(Core):
    """A U-Net shell."""

    skip: str = opt("concat", "how skips join", choices=("concat", "add"))


@attrs.frozen
class Width:
    """Bytes to features."""

    width: int = opt(64, "features a token", ge=1)


@attrs.frozen
class T5:
    """A T5 encoder."""

    model: str = opt(help="hub id or folder")
    width: int = opt(2048, ge=1)


@attrs.frozen
class Shapes:
    """Procedural scenes."""

    objects: int = opt(1, "objects a scene", ge=1, le=3)
    colours: dict[str, float] = opt(attrs.Factory(dict), "weights of the colours", ge=0.0)
    augment: tuple[Use, ...] = slot("loss", (), "nested list")


@attrs.frozen
class Web:
    """Shards."""

    urls: str | tuple[str, ...] = opt(help="brace pattern, or a list of them")
    shuffle: bool = opt(True)


@attrs.frozen
class Mixed:
    """Shares by level."""

    shares: tuple[float, ...] = opt(help="low to high", ge=0.0)


@attrs.frozen
class Cfg:
    """Classifier-free guidance."""

    scale: float = opt(3.0, "1 is none", ge=0.0)


@attrs.frozen
class Adam:
    """AdamW."""

    lr: float = opt(1e-4, gt=0.0)
    betas: tuple[float, float] = opt((0.9, 0.99), ge=0.0, lt=1.0)


@attrs.frozen
class Warmup:
    """Linear warmup."""

    steps: int = opt(100, ge=0)


HERE = __name__


def built(**arguments: Any) -> dict[str, Any]:
    """A target that shows what it was called with."""
    return arguments


def refuses(**arguments: Any) -> None:
    raise ValueError("channels=3 cannot be; try channels=4")


COMPONENTS = [
    Component("noise_schedule", "cosine", Cosine, f"{HERE}:built"),
    Component("noise_schedule", "sigmoid", Sigmoid, f"{HERE}:built"),
    Component("weighting", "uniform", Plain, f"{HERE}:built"),
    Component("time_sampler", "uniform", Plain, f"{HERE}:built"),
    Component("loss", "mse", Plain, f"{HERE}:built"),
    Component("block", "resnet", Resnet, f"{HERE}:built"),
    Component("attention", "sdpa", Plain, f"{HERE}:built"),
    Component("core", "unet", Core, f"{HERE}:built"),
    Component("core", "refuses", Plain, f"{HERE}:refuses"),
    Component("core", "absent", Plain, "no_such_module:Core"),
    Component("shell", "unet", Shell, f"{HERE}:built"),
    Component("text_encoder", "bytes", Width, f"{HERE}:built"),
    Component("text_encoder", "bare", Plain, f"{HERE}:built"),
    Component("text_encoder", "t5", T5, f"{HERE}:built"),
    Component("resolution_sampler", "all", Plain, "mdmkit.resolutions:All"),
    Component("resolution_sampler", "mixed", Mixed, "mdmkit.resolutions:Mixed"),
    *growth.COMPONENTS,  # their rules span the recipe: these are the real ones
    Component("sampler", "ddim", Plain, f"{HERE}:built"),
    Component("spacing", "uniform_t", Plain, f"{HERE}:built"),
    Component("guidance", "cfg", Cfg, f"{HERE}:built"),
    Component("threshold", "clip", Plain, f"{HERE}:built"),
    Component("dataset", "shapes", Shapes, f"{HERE}:built"),
    Component("dataset", "webdataset", Web),
    Component("logger", "tensorboard", Plain, f"{HERE}:built"),
    Component("optimizer", "adamw", Adam, f"{HERE}:built"),
    Component("optimizer", "rateless", Plain, f"{HERE}:built"),
    Component("lr_schedule", "warmup", Warmup, f"{HERE}:built"),
]


@hookimpl
def mdmkit_components():
    return COMPONENTS


def registry(**more: Any) -> Registry:
    """A registry of the stand-ins alone."""
    import sys

    return load_registry(env={"MDMKIT_PLUGINS": ""}, builtins=sys.modules[__name__], **more)


MINIMAL = """\
format = 1

[data]
use = "shapes"

[train]
steps = 100
batch = 8

[[model.levels]]
resolution = 16
"""

FULL = """\
# Text to image at 64 and 128 pixels.
format = 1
summary = "two levels"
requires = ["attrs>=20"]

[run]
seed = 3
precision = "bf16"

[data]
use = "webdataset"
urls = "/data/train-{000000..001241}.tar"
workers = 2

[text]
use = "t5"
model = "google/flan-t5-xl"
width = 512

[diffusion]
schedule = { use = "cosine", offset = 0.01 }
shift_power = 2
level_weights = [1.0, 0.5]

[model]
attend = "sdpa"

[[model.levels]]
resolution = 64
channels = [32, 64, 128]
blocks = [2, 2, 2]
strides = [2, [2, 2]]
block = { norm_groups = 16 }

[[model.levels]]
resolution = 128
channels = [
  32,  # high
  64,
]
skip = "add"

[train]
optimizer = { use = "adamw", lr = 5e-5, betas = [0.9, 0.99] }
lr_schedule = { use = "warmup", steps = 10_000 }
clip = "none"
steps = 1_000
batch = 64

[sample]
steps = 25
prompts = ["a red star", "a blue circle"]
guidance = [{ use = "cfg", scale = 5.0 }]
"""
