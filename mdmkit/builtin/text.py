"""Settings and registrations of the built-in components: text. No torch."""

from __future__ import annotations

import attrs

from mdmkit.plugins.component import Component
from mdmkit.recipe.options import Use, opt, slot

__all__ = ["COMPONENTS", "HF", "T5", "Bytes", "Cached", "Classes"]

LAYERS = ("last", "penultimate")
PRECISIONS = ("fp32", "bf16")
PADS = ("batch", "exact", "max")
PAD_HELP = "up to the longest of a batch and a multiple of 8, exactly the longest, or always max_tokens"
CACHE_HELP = "a folder that keeps each caption's features; nothing is kept where not given"


@attrs.frozen
class Bytes:
    """A small transformer over the UTF-8 bytes of captions, trained with the model; no download."""

    width: int = opt(64, "features a token", ge=1)
    layers: int = opt(2, "transformer layers", ge=0)
    heads: int = opt(4, "attention heads; divides width", ge=1)
    max_tokens: int = opt(64, "bytes of a caption, plus one; longer ones are cut and counted", ge=2)
    pad: str = opt("batch", PAD_HELP, choices=PADS)


@attrs.frozen
class Classes:
    """One learned vector a class; captions are class names or numbers from 0."""

    width: int = opt(64, "length of a vector", ge=1)
    names: tuple[str, ...] = opt((), "the classes; exactly one of names, file and count")
    file: str | None = opt(None, "a text file with one class name a line")
    count: int | None = opt(None, "number of classes without names", ge=1)


@attrs.frozen
class HF:
    """Any pretrained encoder of transformers, frozen, by hub id or from a folder."""

    model: str = opt(help="hub id, or a folder as save_pretrained writes it")
    width: int = opt(help="features a token; checked against the encoder when it is loaded", ge=1)
    max_tokens: int = opt(128, "tokens of a caption; longer ones are cut and counted", ge=1)
    layer: str = opt("last", "whose output the features are", choices=LAYERS)
    precision: str = opt("fp32", "of the encoder's weights and arithmetic", choices=PRECISIONS)
    pad: str = opt("batch", PAD_HELP, choices=PADS)
    cache: str | None = opt(None, CACHE_HELP)
    revision: str | None = opt(None, "commit, tag or branch on the hub")


@attrs.frozen
class T5:
    """The encoder half of a pretrained T5, frozen, by hub id or from a folder."""

    model: str = opt("google/flan-t5-xl", "hub id, or a folder as save_pretrained writes it")
    width: int = opt(2048, "features a token; checked against the encoder when it is loaded", ge=1)
    max_tokens: int = opt(128, "tokens of a caption; longer ones are cut and counted", ge=1)
    layer: str = opt("last", "whose output the features are", choices=LAYERS)
    precision: str = opt("fp32", "of the encoder's weights and arithmetic", choices=PRECISIONS)
    pad: str = opt("batch", PAD_HELP, choices=PADS)
    cache: str | None = opt(None, CACHE_HELP)
    revision: str | None = opt(None, "commit, tag or branch on the hub")


@attrs.frozen
class Cached:
    """Text features that were packed with the samples."""

    width: int = opt(help="features a token of the packed data", ge=1)
    empty: str | None = opt(None, "file with the empty caption's features; from the data where not given")
    max_tokens: int | None = opt(
        None, "all are padded to so many; to the longest of a batch where not given", ge=1
    )
    encoder: Use | None = slot("text_encoder", None, "encodes free prompts; loaded when the first one comes")


COMPONENTS: list[Component] = [
    Component("text_encoder", "bytes", Bytes, "mdmkit.text:BytesEncoder"),
    Component("text_encoder", "classes", Classes, "mdmkit.text:ClassEncoder"),
    Component("text_encoder", "hf", HF, "mdmkit.text:HFEncoder"),
    Component("text_encoder", "t5", T5, "mdmkit.text:T5Encoder"),
    Component("text_encoder", "cached", Cached, "mdmkit.text:CachedEncoder"),
]
