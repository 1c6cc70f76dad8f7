"""Account of a released config's keys: each is taken once, by name, and ends on one of four lists."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import attrs

from mdmkit.errors import WrongInput

__all__ = ["Account", "Keys"]

NONE = ("None", "none", "null", "~", "")  # as words


@attrs.define
class Account:
    """What became of the keys of a config, each by its path there."""

    source: str
    carried: dict[str, str] = attrs.field(factory=dict)  # to its place in the recipe
    unread: dict[str, str] = attrs.field(factory=dict)  # to a remark, which may be empty
    machinery: list[str] = attrs.field(factory=list)
    training_only: list[str] = attrs.field(factory=list)

    def lines(self) -> Iterator[str]:
        """The keys that were not carried over, a line a kind and remark."""
        told: dict[str, list[str]] = {}
        for key, remark in sorted(self.unread.items(), key=lambda item: item[1] != ""):
            what = f"never read by the released code{f' ({remark})' if remark else ''}"
            told.setdefault(what, []).append(key)
        told["about the released programs' files, reader and machines"] = self.machinery
        told["matters in training only, and has no counterpart here"] = self.training_only
        yield from (f"{what}: {', '.join(keys)}" for what, keys in told.items() if keys)


class Keys:
    """One table of a config: its values by key, each checked, and accounted for as it is taken."""

    def __init__(self, values: Any, path: str, account: Account) -> None:
        self.path, self.account = path, account
        self.values: dict[str, Any] = {}
        if not isinstance(values, Mapping):
            raise self.wrong("", f"expected a table, got {type(values).__name__}")
        for spelled, value in values.items():
            key = str(spelled).replace("-", "_")
            if key in self.values:
                raise self.wrong(key, "stands twice, with '-' and with '_'")
            self.values[key] = None if isinstance(value, str) and value.strip() in NONE else value

    def inside(self, key: str) -> Keys:
        """The table under a key; an empty one where there is none."""
        values = self.values.get(key)
        return Keys({} if values is None else values, f"{self.path}{key}.", self.account)

    def wrong(self, key: str, message: str) -> WrongInput:
        """The error of a key, with its path."""
        return WrongInput(f"{self.account.source}: {(self.path + key).strip('.')}: {message}")

    def take(self, key: str, default: Any, convert: Callable[[Any], Any], to: str | None = None) -> Any:
        """The value of a key, converted; the released default where it is absent or None."""
        if key in self.values and to is not None:
            self.account.carried[self.path + key] = to
        value = self.values.get(key)
        if value is None:
            return default
        try:
            return convert(value)
        except ValueError as error:
            raise self.wrong(key, str(error)) from None

    def must(self, key: str, default: Any, convert: Callable[[Any], Any], *allowed: Any) -> None:
        """Refuse a value by which the network would compute something else than it does here."""
        value = self.take(key, default, convert)
        if key in self.values:
            self.account.carried.setdefault(self.path + key, "as it is here")
        if value not in allowed:
            got = f"{value!r}" + ("" if key in self.values else ", the released default")
            wanted = " or ".join(repr(one) for one in allowed)
            raise self.wrong(key, f"expected {wanted}, got {got}; anything else is not offered here")

    def unread(self, keys: Collection[str], remark: str = "") -> None:
        """Put those of the keys that are there on the list of what was never read."""
        self.account.unread |= {self.path + key: remark for key in self.values if key in keys}

    def machinery(self, keys: Collection[str]) -> None:
        """Put those of the keys that are there on the list of paths, readers and machines."""
        self.account.machinery += [self.path + key for key in self.values if key in keys]

    def lift(self, keys: Collection[str], inner: Keys) -> None:
        """Move keys that stand here to the table where the released code would have read them."""
        for key in [key for key in self.values if key in keys]:
            value, place = self.values.pop(key), f"{inner.path}{key}"
            remark = f"{place} counts" if key in inner.values else f"carried over as {place}"
            inner.values.setdefault(key, value)
            self.account.unread[self.path + key] = remark

    def unknown(self, *known: Collection[str]) -> Iterator[str]:
        """A line for each key that is not known."""
        names = sorted({name for some in known for name in some})
        for key in self.values:
            if key not in names:
                close = difflib.get_close_matches(key, names, n=1)
                guess = f"; did you mean '{close[0]}'?" if close else ""
                yield str(self.wrong(key, f"unknown key{guess}"))
