"""For data whose samples bring their own text features, packed with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .encoder import TextEncoder

__all__ = ["CachedEncoder"]


class CachedEncoder(TextEncoder):
    """Holds the features of the empty caption only; those of the samples come with the data.

    In training, `dropped` puts the empty caption in place of dropped ones. The empty caption's features
    come from `hold_empty` (the dataset has them), else from the file `empty` (safetensors with `features`
    (L, D) and `mask` (L,)), else from `encoder`.

    `max_tokens`: features and masks are padded to so many tokens; where not given, to the longest of a batch,
    which a network that looks at padding would see. ValueError for longer ones.

    `encoder` makes the encoder that the data was packed with; it is loaded when a prompt is first encoded,
    so that training never holds it. Without it, `encode` knows the empty caption alone: ValueError for any
    other.
    """

    trainable = False

    def __init__(
        self,
        *,
        width: int,
        empty: str | None = None,
        max_tokens: int | None = None,
        encoder: Callable[..., TextEncoder] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.empty = empty
        self.max_tokens = max_tokens
        self._place: Tensor  # empty: it knows the device and dtype that .to() has moved this module to
        self.register_buffer("_place", torch.empty(0, device=device, dtype=dtype), persistent=False)
        self._make = encoder
        # in tuples: neither is a part of the model's state
        self._encoder: tuple[TextEncoder] | None = None
        self._empty: tuple[Tensor, Tensor] | None = None

    def hold_empty(self, features: Tensor, mask: Tensor) -> None:
        """Take (L, D) and (L,) as the features and mask of the empty caption."""
        if features.ndim != 2 or features.shape[1] != self.width or mask.shape != features.shape[:1]:
            raise ValueError(
                f"expected features (L, {self.width}) and mask (L,) of the empty caption, got "
                f"{tuple(features.shape)} and {tuple(mask.shape)}; is the data packed with another encoder?"
            )
        mask = mask.bool()
        self._empty = features * mask.unsqueeze(-1), mask

    @property
    def reads_prompts(self) -> bool:
        """Whether captions other than the empty one can be encoded."""
        return self._make is not None

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        prompts = [caption for caption in captions if caption]
        if prompts and self._make is None:
            raise ValueError(
                f"cached text features are those of the samples: {prompts[0]!r} cannot be encoded; "
                "name the encoder that the data was packed with in the setting `encoder`"
            )
        if prompts or self._empty_source() == "encoder":
            return self._padded(*self._whole_encoder().encode(captions))
        features, mask = self._padded(*(x.unsqueeze(0) for x in self._held()))
        return features.expand(len(captions), -1, -1), mask.expand(len(captions), -1)

    def spans(self, caption: str) -> list[tuple[int, int]]:
        if self._make is None:
            return super().spans(caption)
        return self._whole_encoder().spans(caption)

    def dropped(self, features: Tensor, mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A batch's features (B, L, D) and mask (B, L), with the empty caption's where `rows` (B,) is true.

        L becomes `max_tokens` where that is given, and else grows where the empty caption is longer.
        """
        if features.shape[-1] != self.width:
            raise ValueError(
                f"the data's text features have width {features.shape[-1]}, expected {self.width}"
            )
        features, mask = self._padded(features.to(self._place), mask.to(self._place.device))
        if not rows.any():  # the empty caption may not be known
            return features, mask
        empty, empty_mask = self.encode([""])
        length = max(features.shape[1], empty.shape[1])
        features, empty, mask, empty_mask = (
            _longer(x, length) for x in (features, empty, mask, empty_mask)
        )
        rows = rows.to(mask.device).unsqueeze(1)
        return torch.where(rows.unsqueeze(2), empty, features), torch.where(rows, empty_mask, mask)

    def _padded(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        length = self.max_tokens or features.shape[1]
        if features.shape[1] > length:
            raise ValueError(f"text features of {features.shape[1]} tokens, more than max_tokens = {length}")
        return _longer(features, length), _longer(mask, length)

    def _empty_source(self) -> str:
        if self._empty is not None:
            return "held"
        if self.empty is not None:
            return "file"
        if self._make is not None:
            return "encoder"
        raise ValueError(
            "the features of the empty caption are not known; give `empty`, the file that mdmkit pack writes "
            "beside the shards, or `encoder`"
        )

    def _held(self) -> tuple[Tensor, Tensor]:
        if self._empty is None:
            assert self.empty is not None
            self.hold_empty(*_read(Path(self.empty).expanduser()))
        assert self._empty is not None
        features, mask = self._empty
        return features.to(self._place), mask.to(self._place.device)

    def _whole_encoder(self) -> TextEncoder:
        if self._encoder is None:
            assert self._make is not None
            encoder = self._make(device=self._place.device, dtype=self._place.dtype)
            if encoder.width != self.width:
                raise ValueError(f"encoder has width {encoder.width}, but the cached features {self.width}")
            self._encoder = (encoder,)
        return self._encoder[0].to(self._place.device)

    def extra_repr(self) -> str:
        return f"width={self.width}"


def _longer(x: Tensor, length: int) -> Tensor:
    """x (B, L, ...) with zeros appended up to L = `length`."""
    return torch.cat((x, x.new_zeros((x.shape[0], length - x.shape[1], *x.shape[2:]))), dim=1)


def _read(file: Path) -> tuple[Tensor, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(file)
        return stored["features"], stored["mask"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(
            f"{file}: cannot read the features of the empty caption; expected a safetensors file with "
            "features and mask, as mdmkit pack writes it"
        ) from error
