"""Resolution samplers: which levels a batch, or each part of a batch, trains."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import attrs

from mdmkit.streams import stream

__all__ = [
    "All",
    "BySource",
    "Curriculum",
    "Divided",
    "Fixed",
    "Mixed",
    "ResolutionSampler",
    "Stochastic",
    "level_factors",
    "rows_per_level",
    "some_steps",
    "step_rows",
]


@runtime_checkable
class ResolutionSampler(Protocol):
    """Which levels the rows of a batch train.

    `step` is the one that the training counts: from a stage's first where there are stages. A sampler whose
    steps do not all reach the same levels may say how often they do, `reach() -> tuple[float, ...]`: for each
    level the expected part of the rows that reach it, in the mean over steps; see `level_factors`. One that
    gives rows out by itself has `rows(step, batch, multiple)`, which stands for `rows_per_level`.
    """

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        """For each level, low to high, the part of the rows whose **top** level it is; the sum is 1.

        A function of its arguments only, so that all ranks agree.
        """
        ...


@attrs.frozen
class All:
    """Every row trains every level."""

    levels: int

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        return (0.0,) * (self.levels - 1) + (1.0,)


@attrs.frozen
class Fixed:
    """Every row stops at one level: what lies above is neither run nor trained.

    Raises ValueError where there is no such level.
    """

    level: int
    levels: int = attrs.field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.level < self.levels:
            raise ValueError(f"expected one of the levels 0 to {self.levels - 1}, got {self.level}")

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        return _only(self.level, self.levels)


@attrs.frozen
class Mixed:
    """A fixed part of each batch stops at each level: `shares[r]` of the rows have r as their top level.

    The mixed batches of the released 1024 configuration (`2:1` from high to low is `shares = (1/3, 2/3)`
    here). Raises ValueError where there is not one share >= 0 a level or their sum is not 1 (to 0.001; then
    made exact).
    """

    row_shares: tuple[float, ...] = attrs.field(alias="shares", converter=tuple)
    levels: int = attrs.field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        _check(self.row_shares, self.levels)

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        return _exact(self.row_shares)


@attrs.frozen
class Stochastic:
    """All rows of a step stop at one level, drawn anew in each: r with probability `probabilities[r]`.

    A step costs what its level costs, and one shape of batch runs at a time. The draw is a function of
    (seed, step). Raises ValueError as `Mixed` does.
    """

    probabilities: tuple[float, ...] = attrs.field(converter=tuple)
    levels: int = attrs.field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        _check(self.probabilities, self.levels, "probabilities")

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        below = list(itertools.accumulate(_exact(self.probabilities)))
        drawn = bisect.bisect_right(below, stream(seed, step, "levels").random())
        # a sum that rounding leaves below 1 must not give what has no probability
        most = max(r for r, probability in enumerate(self.probabilities) if probability > 0)
        return _only(min(drawn, most), self.levels)

    def reach(self) -> tuple[float, ...]:
        """The probability that a step reaches each level."""
        return _reaching(_exact(self.probabilities))


@attrs.frozen
class Curriculum:
    """Shares that move straight from `start` to `end` over the first `steps` steps, and then stay.

    Raises ValueError as `Mixed` does, and for steps < 1.
    """

    start: tuple[float, ...] = attrs.field(converter=tuple)
    end: tuple[float, ...] = attrs.field(converter=tuple)
    steps: int
    levels: int = attrs.field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        _check(self.start, self.levels, "shares at the start")
        _check(self.end, self.levels, "shares at the end")
        if self.steps < 1:
            raise ValueError(f"expected steps >= 1, got {self.steps}")

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        done = min(step / self.steps, 1.0)
        ends = zip(_exact(self.start), _exact(self.end), strict=True)
        return _exact([(1 - done) * first + done * last for first, last in ends])


@attrs.frozen
class BySource:
    """A row stops where its picture does: no picture is enlarged to train a level.

    Without shares every picture is a row up to the highest level that it reaches, all equally often: small
    and large ones come in the proportion of the data. With `shares[r]` of the rows stopping at level r, those
    are any pictures that reach it, equally often; large ones then stop early too.

    What the data hold is known only where they are: `over` gives the sampler for them. Until then every
    picture counts as a large one, which is the most that a training can ask for. Raises ValueError as `Mixed`
    does.
    """

    row_shares: tuple[float, ...] | None = attrs.field(
        alias="shares", default=None, converter=attrs.converters.optional(tuple)
    )
    levels: int = attrs.field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.row_shares is not None:
            _check(self.row_shares, self.levels)

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        return _only(self.levels - 1, self.levels) if self.row_shares is None else _exact(self.row_shares)

    def over(self, counts: Sequence[int] | None) -> Divided:
        """The sampler over data of which `counts[r]` pictures may be rows that stop at level r.

        Those are, without shares, the pictures that reach level r and none above; with shares all that reach
        it. None: any number at every level. Raises ValueError where no picture is as large as a level.
        """
        parts = self.shares(0, 0) if counts is None or self.row_shares is not None else counts
        needed = [r for r, part in enumerate(parts) if part > 0]
        # without shares the highest level must be reached; it is why it is there
        needed = sorted({*needed, self.levels - 1}) if self.row_shares is None else needed
        for level in needed:
            if counts is not None and not counts[level]:
                raise ValueError(f"no picture is as large as level {level}")
        return Divided(tuple(round(part * 2**30) if isinstance(part, float) else part for part in parts))


@attrs.frozen
class Divided:
    """Rows divided among levels by whole numbers, exactly in the long run, though not in each step.

    After any number of steps the rows that have reached level r are those that `parts` ask for, to r units
    of rows (a unit: one row for each rank and micro-batch); a level with a small part is missing in most
    steps rather than having a row too many in each.
    """

    parts: tuple[int, ...]

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        return _exact(self.parts)

    def reach(self) -> tuple[float, ...]:
        """The part of all rows that reaches each level."""
        return _reaching(_exact(self.parts))

    def rows(self, step: int, batch: int, multiple: int = 1) -> tuple[int, ...]:
        """How many of `batch` rows reach each level in this step; as `rows_per_level` has it."""
        ends = (self.so_far(end, batch, multiple) for end in (step, step + 1))
        return tuple(after - before for before, after in zip(*ends, strict=True))

    def so_far(self, steps: int, batch: int, multiple: int = 1) -> tuple[int, ...]:
        """How many rows of the first `steps` steps reach each level."""
        return tuple(multiple * count for count in self._reached(steps * (batch // multiple)))

    def _reached(self, units: int) -> list[int]:
        """Of the first `units` units of rows, how many reach each level."""
        left, found = sum(self.parts), [units]
        for part in self.parts[:-1]:
            # of those that reach a level its part stops there. Nested so, no step has more rows at a level
            # than at the one below: the floor of a ratio below 1 grows no faster than what it is taken of
            found.append(found[-1] * (left - part) // left if left else 0)
            left -= part
        return found


def _only(level: int, levels: int) -> tuple[float, ...]:
    return tuple(float(r == level) for r in range(levels))


def _check(shares: Sequence[float], levels: int, what: str = "shares") -> None:
    if len(shares) != levels:
        raise ValueError(f"expected {what} for {levels} levels, low to high, got {len(shares)}")
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-3:
        raise ValueError(f"expected {what} >= 0 whose sum is 1, got {list(shares)}")


def _exact(shares: Sequence[float]) -> tuple[float, ...]:
    """Shares whose sum is 1 but for rounding."""
    total = math.fsum(shares)
    return tuple(share / total for share in shares)


def _reaching(shares: Sequence[float]) -> tuple[float, ...]:
    """The part of the rows that reaches each level, from the part whose top level it is."""
    return tuple(math.fsum(shares[level:]) for level in range(len(shares)))


def step_rows(sampler: Any, seed: int, step: int, batch: int, multiple: int = 1) -> tuple[int, ...]:
    """How many rows of a step reach each level, as the sampler has it; ValueError as `rows_per_level`."""
    rows = getattr(sampler, "rows", None)
    if rows is None:
        return rows_per_level(sampler.shares(seed, step), batch, multiple)
    rows_per_level((1.0,), batch, multiple)  # whether it splits at all
    return rows(step, batch, multiple)


def level_factors(sampler: Any, rows: Sequence[int]) -> tuple[float, ...]:
    """What each level's mean loss counts in a step of which `rows[r]` rows reach level r.

    A level that only some steps reach, or that more rows reach in some steps than in others, counts in each
    by its rows over their expected number: in the mean over steps it then counts 1, as in a training where
    every step has it, and each row counts alike. 1 for a sampler that does not say `reach()`.
    """
    reach = getattr(sampler, "reach", None)
    if reach is None:
        return (1.0,) * len(rows)
    return tuple(count / (rows[0] * part) for count, part in zip(rows, reach(), strict=False))


def rows_per_level(shares: Sequence[float], batch: int, multiple: int = 1) -> tuple[int, ...]:
    """How many of `batch` rows reach level r, for each level: never rising, the first is `batch`.

    Rows with the highest top level come first, so that level r trains the first `rows[r]` rows. `multiple`
    (ranks times micro-batches): every level's own rows are a multiple of it, so that all parts are alike.
    Largest remainders, ties to the lower level; every level with a share gets at least one unit.
    Raises ValueError where `batch` is no multiple of `multiple` or has too few units.
    """
    if batch % multiple:
        raise ValueError(f"batch={batch} is not a multiple of {multiple} (ranks times micro-batches)")
    units, wanted = batch // multiple, [level for level, share in enumerate(shares) if share > 0]
    if units < len(wanted):
        need = len(wanted) * multiple
        raise ValueError(
            f"batch={batch} cannot give each of {len(wanted)} levels with a share its rows; use >= {need}"
        )
    quotas = [share * units for share in shares]
    counts = [max(math.floor(quota), int(share > 0)) for quota, share in zip(quotas, shares, strict=True)]
    while sum(counts) != units:
        short = sum(counts) < units
        # the level furthest below its quota gains a unit; where minima overshot, the furthest above loses one
        open_levels = wanted if short else [level for level in wanted if counts[level] > 1]
        gap = {level: quotas[level] - counts[level] for level in open_levels}
        level = max(gap, key=lambda r: (gap[r], -r)) if short else min(gap, key=lambda r: (gap[r], -r))
        counts[level] += 1 if short else -1
    return tuple(multiple * sum(counts[level:]) for level in range(len(counts)))


def some_steps(steps: int | None, count: int = 64) -> list[int]:
    """Steps that show what a training of so many (None: not known) asks for: its first ones and its last."""
    first = range(count if steps is None else min(steps, count))
    return [*first, *([steps - 1] if steps is not None and steps > count else [])]
