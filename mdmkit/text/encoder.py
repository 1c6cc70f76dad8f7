"""What every text encoder is: a module from captions to features and a mask."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["PADS", "TextEncoder", "check_pad", "padded_length"]

PADS = ("batch", "exact", "max")


class TextEncoder(nn.Module):
    """Captions to features (B, L, D) and a mask (B, L), true where there is a token.

    D is `width`. Features are zero where the mask is false, and every caption has at least one token, the
    empty string too: that is how a dropped caption is said. A caption's features do not depend on its batch
    mates beyond rounding; L does.

    `trainable`: its parameters are trained and saved with the model. Otherwise it is frozen: it holds no
    parameters and no state as a module, takes no part in checkpoints, and `encode` records no gradients.

    `truncated` counts the captions cut to the encoder's length so far.
    """

    width: int
    trainable: bool
    truncated: int = 0

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features (B, L, width), floating, and mask (B, L), bool, on the encoder's device."""
        raise NotImplementedError

    def spans(self, caption: str) -> list[tuple[int, int]]:
        """The characters [start, end) that each token of a caption stands for; empty where it is none.

        A span for each token that `encode` gives, in order. ValueError where the encoder cannot say.
        """
        raise ValueError(
            f"{type(self).__name__} does not say which characters a token stands for; give prompts no weights"
        )

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.encode(captions)


def padded_length(longest: int, limit: int, pad: str = "batch") -> int:
    """How long the captions of a batch become, the longest of which has so many tokens, at most `limit`.

    "batch": the next multiple of 8: what follows sees few shapes, which caches better. "exact": as long as
    the longest is, as the released models have it. "max": always `limit`, whatever the batch; a network that
    looks at padding (`masked_cross_attention = false`) needs it in training, or a caption's batch mates
    change what is learned from it.
    """
    if pad == "max":
        return limit
    return min(longest if pad == "exact" else -(-longest // 8) * 8, limit)


def check_pad(pad: str) -> None:
    """ValueError for a way of padding that is not known."""
    if pad not in PADS:
        raise ValueError(f"expected pad to be one of {', '.join(PADS)}, got {pad!r}")
