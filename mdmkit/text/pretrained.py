"""Frozen pretrained encoders of the transformers library, by hub id or from a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdmkit.errors import MdmkitError, WrongInput

from .encoder import TextEncoder, check_pad, padded_length
from .loading import Loaded, fingerprint, load
from .store import FeatureStore

__all__ = ["HFEncoder", "T5Encoder"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYERS = ("last", "penultimate")


class HFEncoder(TextEncoder):
    """Features of a pretrained encoder: `last` is its output, `penultimate` the state one layer before.

    The penultimate state is taken as transformers gives it, without the encoder's final norm. The text half
    is used of encoder-decoders and of CLIP. `model` is a folder, or a hub id (downloaded at the first use,
    then cached), there at `revision`. `width` is checked against the encoder when it is loaded. `precision`
    is that of the encoder's weights and arithmetic, whatever autocast is around it; features come in
    `dtype` (float32 where not given). `pad`: see `padded_length`.

    The empty caption is what the tokenizer makes of "": its special tokens (`</s>` for T5, `[CLS] [SEP]`
    for BERT); of a tokenizer without any, one padding token. Captions longer than `max_tokens`, special
    tokens included, are cut by the tokenizer and counted in `truncated`.

    `cache`: a folder that keeps the features of each caption, for this and later programs (`FeatureStore`).
    Captions are then encoded one at a time, once, so that features are bit for bit those that a caption has
    alone, whatever its batch; without it, to rounding. Between devices they agree to rounding too, and what
    was encoded first is what is kept.

    Built on a real device, the encoder is loaded at once, with a `cache` when the first caption comes that
    is not in it; on the meta device when it is first used on a real one, and `encode` on meta gives meta
    tensors of `max_tokens` tokens without any file.

    WrongInput for an encoder that is not there, not whole or not as stated, MdmkitError where transformers
    or the network is missing. Code that comes with a model is never run.
    """

    trainable = False

    def __init__(
        self,
        *,
        model: str,
        width: int,
        max_tokens: int = 128,
        layer: str = "last",
        precision: str = "fp32",
        pad: str = "batch",
        cache: str | None = None,
        revision: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if layer not in LAYERS:
            raise ValueError(f"expected layer to be one of {', '.join(LAYERS)}, got {layer!r}")
        if precision not in PRECISIONS:
            raise ValueError(f"expected precision to be one of {', '.join(PRECISIONS)}, got {precision!r}")
        check_pad(pad)
        self.model = model
        self.width = width
        self.max_tokens = max_tokens
        self.layer = layer
        self.precision = precision
        self.pad = pad
        self.cache = cache
        self.revision = revision
        self._place: Tensor  # empty: it knows the device and dtype that .to() has moved this module to
        self.register_buffer("_place", torch.empty(0, device=device, dtype=dtype), persistent=False)
        # a tuple, so that the encoder is no submodule: no parameters, no state, no train mode
        self._loaded: Loaded | None = None
        self._store: FeatureStore | None = None
        if not self._place.is_meta and not self._open_store():
            self.load()

    def load(self) -> None:
        """Load tokenizer and encoder, where they are not yet, and check them against the settings."""
        if self._loaded is None:
            self._loaded = load(
                self.model,
                revision=self.revision,
                families=self._families(),
                dtype=PRECISIONS[self.precision],
                device=self._place.device,
            )
            try:
                self._check(self._loaded)
            except MdmkitError:
                self._loaded = None
                raise
            self._open_store()  # the hub may have given a newer one than was in the local cache

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        if self._place.is_meta:
            shape = (len(captions), self.max_tokens)
            mask = torch.ones(shape, dtype=torch.bool, device="meta")
            return self._place.new_zeros((*shape, self.width)), mask
        if self.cache is not None:
            return self._kept(captions)
        self.load()
        assert self._loaded is not None
        features, mask = self._encode(self._tokens(self._loaded.tokenizer, captions))
        more = padded_length(mask.shape[1], self.max_tokens, self.pad) - mask.shape[1]
        return F.pad(features.to(self._place.dtype), (0, 0, 0, more)), F.pad(mask, (0, more))

    def spans(self, caption: str) -> list[tuple[int, int]]:
        """As the tokenizer says it; ValueError for one without Rust behind it, which does not."""
        self.load()
        assert self._loaded is not None
        tokenizer = self._loaded.tokenizer
        if not tokenizer.is_fast:
            return super().spans(caption)
        options = {"truncation": True, "max_length": self.max_tokens, "verbose": False}
        found = tokenizer(caption, return_offsets_mapping=True, **options)["offset_mapping"]
        return [(start, end) for start, end in found] or [(0, 0)]

    def _open_store(self) -> bool:
        """Whether the cache could be opened: it is named, and it is known which encoder this is."""
        known = None if self.cache is None else fingerprint(self.model, revision=self.revision)
        if known is None or self.cache is None:
            return False
        said = f"{known}\n{self.layer}\n{self.precision}\n{self.max_tokens}"
        if self._store is None or self._store.encoder != said:
            self._store = FeatureStore(self.cache, said)
        return True

    def _kept(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`encode` through the cache."""
        if self._store is None and not self._open_store():
            self.load()
        once = {caption: self._kept_one(caption) for caption in dict.fromkeys(captions)}
        self.truncated += sum(once[caption][1] for caption in captions)
        rows = [once[caption][0] for caption in captions]
        length = padded_length(max(map(len, rows), default=1), self.max_tokens, self.pad)
        features = self._place.new_zeros((len(rows), length, self.width))
        mask = torch.zeros((len(rows), length), dtype=torch.bool, device=self._place.device)
        for row, kept in enumerate(rows):
            features[row, : len(kept)] = kept.to(self._place)
            mask[row, : len(kept)] = True
        return features, mask

    def _kept_one(self, caption: str) -> tuple[Tensor, bool]:
        """The features (L, width) of a caption alone, and whether it was cut."""
        found = None if self._store is None else self._store.get(caption)
        if found is None:
            self.load()
            assert self._loaded is not None
            before = self.truncated
            rows = self._tokens(self._loaded.tokenizer, [caption])
            cut, self.truncated = self.truncated > before, before
            found = self._encode(rows)[0][0], cut
            if self._store is not None:
                self._store.put(caption, *found)
        if found[0].shape[1] != self.width:
            raise self._other_width(found[0].shape[1])
        return found

    def _encode(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Features of rows of tokens in the encoder's own precision, the longest unpadded, and their mask."""
        assert self._loaded is not None
        tokenizer, encoder = self._loaded
        length = max(map(len, rows), default=1)
        ids = torch.full((len(rows), length), _padding_token(tokenizer), dtype=torch.int64)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        lengths = torch.tensor([len(tokens) for tokens in rows], dtype=torch.int64)
        device = self._place.device
        mask = (torch.arange(length) < lengths.unsqueeze(1)).to(device)
        if next(encoder.parameters()).device != device:
            encoder.to(device)
        return self._features(encoder, ids.to(device), mask), mask

    def _features(self, encoder: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        penultimate = self.layer == "penultimate"
        # without autocast, features are the same in training, in sampling and stored by pack
        with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
            out = encoder(input_ids=ids, attention_mask=mask.long(), output_hidden_states=penultimate)
            hidden = out.hidden_states[-2] if penultimate else out.last_hidden_state
            return hidden * mask.unsqueeze(-1)

    def _tokens(self, tokenizer: Any, captions: Sequence[str]) -> list[list[int]]:
        def ids(texts: Sequence[str], **options: Any) -> list[list[int]]:
            if not texts:
                return []
            return tokenizer(list(texts), return_attention_mask=False, verbose=False, **options)["input_ids"]

        rows = ids(captions, truncation=True, max_length=self.max_tokens)
        full = [caption for caption, row in zip(captions, rows, strict=True) if len(row) >= self.max_tokens]
        self.truncated += sum(len(row) > self.max_tokens for row in ids(full))
        return [row or [_padding_token(tokenizer)] for row in rows]

    def _families(self) -> tuple[str, ...]:
        """Model types that this class takes; empty: any."""
        return ()

    def _check(self, loaded: Loaded) -> None:
        tokenizer, encoder = loaded
        positions = getattr(encoder.config, "max_position_embeddings", None)
        if isinstance(positions, int) and 0 < positions < self.max_tokens:
            raise WrongInput(f"{self.model}: has {positions} positions; set max_tokens to at most that")
        beside_words = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
        if len(tokenizer.get_vocab().keys() - beside_words) < 2:
            raise WrongInput(f"{self.model}: its tokenizer knows no words; the tokenizer's files are missing")
        embeddings = encoder.get_input_embeddings()
        if isinstance(embeddings, nn.Embedding) and len(tokenizer) > embeddings.num_embeddings:
            raise WrongInput(
                f"{self.model}: its tokenizer has {len(tokenizer)} tokens, but the encoder knows "
                f"{embeddings.num_embeddings}; take both from one model"
            )
        width = self._encode(self._tokens(tokenizer, [""]))[0].shape[-1]
        if width != self.width:
            raise self._other_width(width)

    def _other_width(self, width: int) -> WrongInput:
        return WrongInput(
            f"{self.model}: its features have width {width}; set width = {width} (it is {self.width})"
        )

    def extra_repr(self) -> str:
        return f"{self.model!r}, width={self.width}, max_tokens={self.max_tokens}, layer={self.layer!r}"


class T5Encoder(HFEncoder):
    """The encoder half of T5, mT5 or UMT5. Released models use google/flan-t5-xl, 128 tokens, last layer."""

    def __init__(
        self,
        *,
        model: str = "google/flan-t5-xl",
        width: int = 2048,
        max_tokens: int = 128,
        layer: str = "last",
        precision: str = "fp32",
        pad: str = "batch",
        cache: str | None = None,
        revision: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            model=model,
            width=width,
            max_tokens=max_tokens,
            layer=layer,
            precision=precision,
            pad=pad,
            cache=cache,
            revision=revision,
            device=device,
            dtype=dtype,
        )

    def _families(self) -> tuple[str, ...]:
        return ("t5", "mt5", "umt5")


def _padding_token(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0
