"""Growth strategies: what each stage of a training has of the network, and what it carries over.

A stage (`mdmkit.stages`) is a training of its own: some levels, a batch, a number of steps. Between two
stages the whole state (parameters, averages, moments) is carried into the larger network by its strategy's
`carry`. Nothing here needs torch before it carries something, so that a recipe can be checked without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import attrs

from mdmkit.stages import Stage, new_levels, stages_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Cascade",
    "Deepen",
    "FadeIn",
    "FreezeThenThaw",
    "Growth",
    "Net2Wider",
    "NoGrowth",
    "Stack",
    "Staged",
    "Temporal",
    "apart",
    "as_pictures",
]


@runtime_checkable
class Growth(Protocol):
    """How a network grows.

    preserves: right after growth every level that was there predicts exactly what it did. A strategy may also
    say `apart` = True: nothing is carried, and each stage is given the levels of the stage before.
    """

    preserves: ClassVar[bool]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One after the other; their levels never fall."""
        ...

    def network(self, settings: Any, stage: int, level: int) -> Any:
        """The settings of a level's network as they are in a stage, from those of the recipe."""
        ...

    def carry(
        self, old: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], *, moment: int = 0
    ) -> dict[str, Tensor]:
        """Tensors by parameter name in a network, from those in the network before; the others start afresh.

        shapes are those of the network's parameters. moment: 0 for parameters and their averages, 1 and 2
        for the optimiser's running means of gradients and of their squares.
        """
        ...


def apart(growth: Growth) -> bool:
    """Whether each stage of a strategy is a model of its own, which is given what the one before draws."""
    return getattr(growth, "apart", False)


@attrs.frozen
class Staged:
    """Levels are added by stages; all that joins them to the others starts at zero.

    Source: Gu et al. 2024 (2310.15111), section 3.3, with the zero adapters of the released networks.
    """

    preserves: ClassVar[bool] = True
    stages: tuple[Stage, ...] = attrs.field(converter=stages_of)
    levels: int = attrs.field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not self.stages:
            raise ValueError("expected at least one stage, got none")
        before = 1
        for i, stage in enumerate(self.stages):
            if not before <= stage.levels <= self.levels:
                raise ValueError(
                    f"expected {before} to {self.levels} levels in stages[{i}], got {stage.levels}: levels "
                    "never fall, and the network has no more"
                )
            before = stage.levels

    def network(self, settings: Any, stage: int, level: int) -> Any:
        """The settings as they are: levels come whole."""
        return settings

    def carry(
        self, old: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], *, moment: int = 0
    ) -> dict[str, Tensor]:
        """Everything under its own name, as it is."""
        return dict(old)


@attrs.frozen
class NoGrowth:
    """All levels from the first step on: one stage."""

    preserves: ClassVar[bool] = True
    levels: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The one, as long as the recipe's [train] says."""
        return (Stage(levels=self.levels),)

    def network(self, settings: Any, stage: int, level: int) -> Any:
        """The settings as they are."""
        return settings

    def carry(
        self, old: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], *, moment: int = 0
    ) -> dict[str, Tensor]:
        """Everything as it is."""
        return dict(old)


@attrs.frozen
class FreezeThenThaw(Staged):
    """As staged; in the first `freeze` steps of a stage only what is new learns.

    Source: greedy growing, Vasconcelos et al. 2024 (2405.16759).
    """


@attrs.frozen
class FadeIn(Staged):
    """As staged; new levels are faded in: at weight 0 a step is that of the network before.

    Over `fade` steps of a stage the loss weight of its new levels rises from 0 to 1, and so does what they
    hand to the levels inside. Source: Karras et al. 2018 (1710.10196), section 2, for a diffusion nest.
    """


@attrs.frozen
class Net2Wider(Staged):
    """Levels, and channels within them: every channel becomes several that together say what it did.

    Each channel is repeated in place, norm groups and heads stay, weights are split among the copies of what
    they read. split: how unevenly, from 0 (equal parts: copies then stay equal for ever, as their gradients
    are) to below 1. Moments are those of equal parts. Source: Chen et al. 2016 (1511.05641), section 3.
    """

    split: float = 0.5

    def __attrs_post_init__(self) -> None:
        Staged.__attrs_post_init__(self)
        if not 0 <= self.split < 1:
            raise ValueError(f"expected 0 <= split < 1, got {self.split}")

    def network(self, settings: Any, stage: int, level: int) -> Any:
        """Channels divided; the width of the embedding is that of the whole network.

        ValueError where they cannot be, or could not be widened again without changing what is said.
        """
        divisor = self.stages[stage].divisor(level)
        if divisor == 1:
            return settings
        if odd := [width for width in settings.channels if width % divisor]:
            raise ValueError(f"narrower = {divisor} does not divide the {odd[0]} channels of level {level}")
        temporal = getattr(settings, "temporal_attention", 0)
        in_grid = temporal if isinstance(temporal, int) else any(temporal)
        if in_grid or getattr(settings, "temporal", None) is not None:
            what = "temporal_attention" if in_grid else "temporal layers"
            raise ValueError(
                f"level {level} has {what}, whose heads are of one size, so that more channels "
                "are other heads; leave narrower out there"
            )
        changes: dict[str, Any] = {"channels": tuple(width // divisor for width in settings.channels)}
        if hasattr(settings, "emb_dim"):
            changes["emb_dim"] = settings.emb_dim or 4 * settings.channels[0]
        return attrs.evolve(settings, **changes)

    def carry(
        self, old: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], *, moment: int = 0
    ) -> dict[str, Tensor]:
        """Every tensor widened to its new shape."""
        from mdmkit.operators import widened

        return {
            name: widened(name, tensor, shapes[name], moment=moment, split=self.split)
            for name, tensor in old.items()
        }


@attrs.frozen
class Deepen(Staged):
    """Levels, and residual blocks behind those of a stage (`extra_blocks`), which start as the identity."""

    def network(self, settings: Any, stage: int, level: int) -> Any:
        """At most the stage's extra blocks."""
        most, has = self.stages[stage].extra_blocks, getattr(settings, "extra_blocks", 0)
        if most is None:
            return settings
        fewer = min(has, most) if isinstance(has, int) else tuple(min(one, most) for one in has)
        return attrs.evolve(settings, extra_blocks=fewer)


def extra_blocks_of(settings: Any, stage: int) -> int:
    """How many extra blocks a stage of a network has."""
    has = getattr(settings, "extra_blocks", 0)
    return has if isinstance(has, int) else has[stage]


@attrs.frozen
class Stack(Deepen):
    """As deepen, but a new block starts as a copy of the one before it: what the network says changes.

    Source: Du et al. 2024 (2405.15319), depth stacking.
    """

    preserves: ClassVar[bool] = False

    def network(self, settings: Any, stage: int, level: int) -> Any:
        """As deepen. ValueError where a stage of a network has no block that a new one could be a copy of."""
        fewer = Deepen.network(self, settings, stage, level)
        channels, blocks = getattr(settings, "channels", ()), getattr(settings, "blocks", 2)
        for i in range(1, len(channels)):
            has, had = (extra_blocks_of(one, i) for one in (settings, fewer))
            one = (blocks if isinstance(blocks, int) else blocks[i]) == 1
            if has and not had and one and channels[i] != channels[i - 1]:
                raise ValueError(
                    f"level {level} has one block in its stage of {channels[i]} channels, which no other has "
                    "the shapes of, and stacking copies blocks; give it two in blocks, or take deepen"
                )
        return fewer

    def carry(
        self, old: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], *, moment: int = 0
    ) -> dict[str, Tensor]:
        """Everything as it is; and parameters, not moments, of extra blocks from the block before them."""
        from mdmkit.operators import stacked

        return dict(old) if moment else stacked(old, shapes)


def as_pictures(settings: Any) -> Any:
    """The settings of a level of clips without time: one frame, no layers or strides along frames.

    Its network is a part of that of the clips, by its names and by what it says of each frame. Settings of
    levels of pictures stay as they are; of grids of frames too, as their layers cannot be taken apart.
    """
    if getattr(settings, "frames", 1) == 1 or getattr(settings, "layout", None) == "grid":
        return settings
    changes: dict[str, Any] = {"frames": 1}
    for field in attrs.fields(type(settings)):
        if field.name in ("temporal", "temporal_layers"):
            changes[field.name] = field.default
    if settings.strides is not None:
        changes["strides"] = tuple(s if isinstance(s, int) else tuple(s[-2:]) for s in settings.strides)
    micros = {k: v for k, v in (settings.micro_conditioning or {}).items() if k not in ("fps", "frames")}
    changes["micro_conditioning"] = micros or None
    return attrs.evolve(settings, **changes)


@attrs.frozen
class Temporal(Staged):
    """Levels by stages, and time: a network over pictures becomes one over clips.

    Stages with clips=False train the levels on pictures; in the next the recipe's frames, layers along time
    (which start as the identity), strides along time (which start as averages and repetitions) and
    micro-conditioning by frames join it. Right then every frame of a clip is said what the pictures' network
    says of it, where levels have as many frames as the core; a level with more gives and takes features that
    are averages over frames, and says so of clips that stand still.
    """

    def __attrs_post_init__(self) -> None:
        Staged.__attrs_post_init__(self)
        said = [stage.clips for stage in self.stages]
        if said != sorted(said) or not said[-1]:
            raise ValueError(f"expected stages of pictures, then of clips, which come last, got clips {said}")

    def network(self, settings: Any, stage: int, level: int) -> Any:
        """In a stage of pictures, the settings without time."""
        return settings if self.stages[stage].clips else as_pictures(settings)


@attrs.frozen
class Cascade(Staged):
    """Separate models in sequence: each is given the levels of those before it, and learns what it adds.

    Nothing is carried over: a stage trains a fresh network, to which the levels of the stages before are
    shown with a little noise (`mdmkit.diffusion.Diffusion.given`). Drawn one after another, each is given
    what those before it have drawn. Source: Ho et al. 2022 (2106.15282).
    """

    preserves: ClassVar[bool] = False
    apart: ClassVar[bool] = True

    def __attrs_post_init__(self) -> None:
        Staged.__attrs_post_init__(self)
        for i in range(1, len(self.stages)):
            if not new_levels(self.stages, i):
                raise ValueError(
                    f"expected stages[{i}] to add a level to the {self.stages[i].levels} before it, as it is "
                    "a model that draws what it adds"
                )

    def carry(
        self, old: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], *, moment: int = 0
    ) -> dict[str, Tensor]:
        """Nothing."""
        return {}
