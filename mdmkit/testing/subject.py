"""What a battery looks at: one registration, sample settings for it, and a way to build it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import attrs

from mdmkit.plugins import Component, Kind

__all__ = ["ConformanceError", "Subject", "load"]


class ConformanceError(AssertionError):
    """A component breaks a promise of its kind; the message says which one, and by what."""


def load(target: str) -> Any:
    """The object that "module:attr" names. ImportError or AttributeError where there is none."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


@attrs.frozen
class Subject:
    """A component under test; `make(settings, context)` builds it, `context` is the author's."""

    component: Component
    kind: Kind
    settings: Any
    make: Callable[[Any, Mapping[str, Any]], Any]
    context: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def fields(self) -> dict[str, Any]:
        """Values of the sample settings by name."""
        return {field.name: getattr(self.settings, field.name) for field in attrs.fields(type(self.settings))}

    def build(self, settings: Mapping[str, Any] | None = None, **context: Any) -> Any:
        """A fresh object; `settings` change the samples.

        Of `context` it is given what its kind names, the author's own instead of the battery's.
        """
        changed = attrs.evolve(self.settings, **settings) if settings else self.settings
        named = (*self.kind.context, *self.kind.optional)
        given = {name: value for name, value in context.items() if name in named}
        return self.make(changed, {**given, **self.context})

    def breaks(self, message: str) -> NoReturn:
        raise ConformanceError(f"{self.component.kind} {self.component.name}: {message}")

    def must(self, kept: Any, message: str) -> None:
        """Raise ConformanceError with `message` unless `kept`."""
        if not bool(kept):
            self.breaks(message)

    def attempt(self, what: str, call: Callable[[], Any]) -> Any:
        """The value of `call()`; whatever it raises becomes a broken promise that names `what`."""
        try:
            return call()
        except ConformanceError:
            raise
        except Exception as error:
            message = f"{what} raises {type(error).__name__}: {error}"
            raise ConformanceError(f"{self.component.kind} {self.component.name}: {message}") from error
