"""Weights in prompts: `(red:1.4) circle` makes the tokens of a word count more, or less."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Span", "WeightedPrompts", "WeightedText", "parse", "token_weights"]

Span = tuple[int, int]  # the characters [start, end) of a caption that a token stands for; empty: none


class WeightedText(NamedTuple):
    """A text without its marks, and the weight of each character."""

    text: str
    weights: tuple[float, ...]


def parse(prompt: str) -> WeightedText:
    r"""The text of a prompt and how much each of its characters counts.

    `(words:1.4)` gives words a weight, a number of at least 0, behind the last colon; they may stand inside
    of others, and weights are multiplied. `\(`, `\)` and `\\` stand for the characters themselves; a colon
    outside of parentheses is one. Raises ValueError, with the place, for parentheses that do not close or
    open, or have no weight, no words or another number.
    """
    # of each open parenthesis: its place, and where its text began
    text: list[str] = []
    weights: list[float] = []
    opened: list[tuple[int, int]] = []
    colons: list[int | None] = [None]  # of each depth: where its last colon stands in the text
    i = 0
    while i < len(prompt):
        character = prompt[i]
        if character == "\\" and prompt[i + 1 : i + 2] in ("(", ")", "\\"):
            i += 1
            character = prompt[i]
        elif character == "(":
            opened.append((i, len(text)))
            colons.append(None)
            i += 1
            continue
        elif character == ")":
            if not opened:
                raise _wrong(prompt, i, "closes nothing", r"write \) for the character")
            place, start = opened.pop()
            colon = colons.pop()
            weight = _number(prompt, place, text, start, colon)
            del text[colon:], weights[colon:]
            weights[start:] = [weight * inside for inside in weights[start:]]
            i += 1
            continue
        elif character == ":":
            colons[-1] = len(text)
        text.append(character)
        weights.append(1.0)
        i += 1
    if opened:
        raise _wrong(prompt, opened[-1][0], "is not closed", r"write \( for the character")
    return WeightedText("".join(text), tuple(weights))


def _number(prompt: str, place: int, text: list[str], start: int, colon: int | None) -> float:
    """The weight behind the last colon of what a parenthesis holds."""
    if colon is None:
        raise _wrong(prompt, place, "has no weight", r"write (words:1.4), or \( and \) for the characters")
    said = "".join(text[colon + 1 :]).strip()
    try:
        weight = float(said)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise _wrong(prompt, place, f"has the weight {said!r}", "expected a number of at least 0, like 1.4")
    if not "".join(text[start:colon]).strip():
        raise _wrong(prompt, place, "holds no words", "put those to weigh in front of the colon")
    return weight


def _wrong(prompt: str, place: int, what: str, do: str) -> ValueError:
    return ValueError(
        f"prompt {prompt!r}: the parenthesis at character {place + 1} {what}; {do}"
    )


def token_weights(weighted: WeightedText, spans: Sequence[Span]) -> list[float]:
    """The weight of each token: the mean over the characters that it stands for.

    Spaces count only in tokens of nothing else, as tokens often take the one in front of a word with them. A
    token that stands for no character (a start token) has weight 1.
    """
    weights = []
    for start, end in spans:
        pairs = list(zip(weighted.text[start:end], weighted.weights[start:end], strict=True))
        heavy = [weight for character, weight in pairs if not character.isspace()]
        heavy = heavy or [weight for _, weight in pairs]
        weights.append(math.fsum(heavy) / len(heavy) if heavy else 1.0)
    return weights


class WeightedPrompts:
    """An encoder of prompts with weights: features, mask, and a weight for each token (B, L).

    Around any text encoder that knows which characters a token stands for (`TextEncoder.spans`). What the
    encoder reads is the text without its marks. Padding has weight 1. `NestedUNet.read` says what weights do;
    a prompt that gives none is as without this. Raises ValueError for prompts that `parse` refuses.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        weighted = [parse(prompt) for prompt in prompts]
        features, mask = self.encoder([text for text, _ in weighted])
        weights = torch.ones(mask.shape, dtype=torch.float32)
        for row, one in zip(weights, weighted, strict=True):
            if any(weight != 1 for weight in one.weights):  # the rest needs no tokens
                found = token_weights(one, self.encoder.spans(one.text))[: len(row)]
                row[: len(found)] = torch.tensor(found)
        return features, mask, weights.to(features.device)
