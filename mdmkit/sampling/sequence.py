"""Drawing with models in sequence: each is given the levels that those before it have drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor, nn

from mdmkit.diffusion import Diffusion

from .conditions import Conditions, Encode
from .draw import Drawing, draw, read_by
from .edit import Known
from .regions import Regions

__all__ = ["Link", "draw_in_sequence"]


@attrs.frozen(eq=False)
class Link:
    """A model in a sequence, and how it draws: its nest, text encoder and process."""

    nest: nn.Module
    text: Encode | None
    diffusion: Diffusion
    drawing: Drawing


def draw_in_sequence(
    models: Sequence[Link],
    *,
    resolutions: Sequence[tuple[int, ...]],
    captions: Sequence[str] = (),
    conditions: Callable[[Link], Conditions] | None = None,
    known: Known | None = None,
    regions: Regions | None = None,
    micros: Mapping[str, float] | None = None,
    **told: Any,
) -> list[tuple[Tensor, ...]]:
    """What `draw` gives, by models from the inside out; a single one that is given nothing is `draw` itself.

    Each is given all levels of those before it (`Diffusion.given`), at the same captions and seeds; those
    that would draw nothing else than wholly `known` levels, or levels beyond `resolutions`, are not asked.
    `conditions`: the text features of a model, in the place of captions. `micros`: each is told those that it
    reads. ValueError, beside those of `draw`, where the innermost model is given levels that are not known,
    and for numbers that none reads.
    """
    asked = [model for model in models if model.diffusion.given < len(resolutions)] or list(models[:1])
    wholly = 0 if known is None else whole_levels(known)
    first = max((i for i, model in enumerate(asked) if model.diffusion.given <= wholly), default=0)
    if regions is not None and regions.sizes is None:
        regions = attrs.evolve(regions, sizes=tuple(resolutions))
    numbers = [read_by(model.nest, micros) for model in asked[first:]]
    if unread := [name for name in micros or () if all(name not in (few or ()) for few in numbers)]:
        read = {name for model in asked[first:] for name in getattr(model.nest, "micro_conditioning", ())}
        raise ValueError(
            f"no model reads the micro-conditioning {unread[0]!r} (known: {', '.join(sorted(read))})"
        )
    drawn: list[tuple[Tensor, ...]] = []
    for i, model in enumerate(asked[first:]):
        features = None if conditions is None else conditions(model)
        given: Sequence[Sequence[Tensor]] | None = drawn or None
        if i == 0 and 0 < model.diffusion.given <= wholly and known is not None:
            rows = len(captions) if features is None else features.pictures
            given = [[x[0] for x in known.pictures[: model.diffusion.given]]] * rows
        drawn = draw(
            model.nest,
            model.text,
            model.diffusion,
            model.drawing,
            resolutions=resolutions[: model.diffusion.levels],
            captions=captions,
            conditions=features,
            known=known,
            given=given,
            regions=regions,
            micros=numbers[i],
            **told,
        )
    return drawn


def whole_levels(known: Known) -> int:
    """Of how many levels, from the inside out, all is known."""
    wholly = [bool(mask.all()) for mask in known.masks]
    return wholly.index(False) if False in wholly else len(wholly)
