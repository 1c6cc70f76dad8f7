"""The registry: finds components by kind and name, and builds them. No torch until something is built."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pluggy

from mdmkit.errors import MdmkitError, WrongInput
from mdmkit.recipe.options import Use
from mdmkit.recipe.problems import Wrong, did_you_mean, unknown

from .component import Component
from .kinds import KINDS, Kind

if TYPE_CHECKING:
    from mdmkit.recipe.problems import Problem
    from mdmkit.recipe.schema import Recipe

__all__ = ["Entry", "Plugin", "Registry"]


@attrs.frozen
class Plugin:
    """Where components come from: the built-ins, an installed distribution, or a module named by --plugin.

    `error` says why it could not be used; what it offers is then not there.
    """

    name: str
    module: str
    distribution: str | None = None
    version: str | None = None
    error: str | None = None

    @property
    def owner(self) -> str:
        """The plugin in messages: its distribution and version, or its module."""
        if self.distribution is None:
            return f"module {self.module}"
        return f"{self.distribution} {self.version}" if self.version else self.distribution


@attrs.frozen
class Entry:
    """A component and the plugin that offers it."""

    component: Component
    plugin: Plugin

    @property
    def owner(self) -> str:
        return self.plugin.owner

    @property
    def doc(self) -> str:
        """The first line of the settings' docstring."""
        doc = (self.component.settings.__doc__ or "").strip()
        return doc.splitlines()[0] if doc else ""


class Registry:
    """Components by kind, name and version, of all plugins that could be loaded."""

    def __init__(
        self,
        *,
        manager: pluggy.PluginManager,
        plugins: Iterable[Plugin],
        entries: Iterable[Entry],
        recipes: Mapping[str, Path] | None = None,
        switched_off: Iterable[str] = (),
        extra_modules: Iterable[str] = (),
    ) -> None:
        self.manager = manager
        self.plugins = tuple(plugins)
        self.recipes = dict(recipes or {})
        self.switched_off = frozenset(switched_off)
        self.extra_modules = tuple(extra_modules)
        self._entries: dict[str, dict[str, dict[int, Entry]]] = {kind: {} for kind in KINDS}
        for entry in entries:
            c = entry.component
            self._entries[c.kind].setdefault(c.name, {})[c.version] = entry

    @property
    def hook(self) -> Any:
        """The hooks of all plugins: `registry.hook.mdmkit_step_end(run=..., step=..., metrics=...)`."""
        return self.manager.hook

    @property
    def broken(self) -> tuple[Plugin, ...]:
        """The plugins that could not be loaded; each `error` names the cause."""
        return tuple(plugin for plugin in self.plugins if plugin.error is not None)

    def names(self, kind: str) -> list[str]:
        """The names of all components of a kind, sorted."""
        return sorted(self._entries[kind])

    def entries(self, kind: str | None = None) -> list[Entry]:
        """All components, of one kind or of all, sorted by kind, name and version."""
        kinds = KINDS if kind is None else [kind]
        return [
            entry
            for kind in kinds
            for _, versions in sorted(self._entries[kind].items())
            for _, entry in sorted(versions.items())
        ]

    def find(self, kind: str, name: str) -> Entry:
        """The component "name" (newest version) or "name@version" of a kind; WrongInput otherwise."""
        if kind not in KINDS:
            raise WrongInput(unknown(f"unknown kind {kind!r}", kind, KINDS))
        bare, at, version = name.partition("@")
        if at and not (version.isascii() and version.isdigit()):
            raise WrongInput(f"expected name or name@version with an integer version, got {name!r}")
        versions = self._entries[kind].get(bare)
        if versions is None:
            raise WrongInput(self._why_unknown(kind, bare))
        if not at:
            return versions[max(versions)]
        if int(version) not in versions:
            known = ", ".join(map(str, sorted(versions)))
            raise WrongInput(f"{kind} {bare!r} has no version {int(version)} (known: {known})")
        return versions[int(version)]

    def _why_unknown(self, kind: str, name: str) -> str:
        start = f"unknown {kind} {name!r}"
        prefix, dot, _ = name.partition(".")
        if dot:
            for plugin in self.broken:
                if plugin.name == prefix:
                    return f"{start}: plugin '{prefix}' ({plugin.owner}) cannot be used: {plugin.error}"
            if prefix in self.switched_off:
                return (
                    f"{start}: plugin '{prefix}' is switched off by MDMKIT_DISABLE_PLUGINS or MDMKIT_PLUGINS"
                )
            if all(plugin.name != prefix for plugin in self.plugins):
                start += f": no plugin '{prefix}' is installed"
        elsewhere = [other for other in KINDS if name in self._entries[other]]
        known = self.names(kind)
        if elsewhere and not did_you_mean(name, known):
            start += f"; that name is of kind {elsewhere[0]}"
        return unknown(start, name, known)

    def build(self, use: Use, *, kind: str | None = None, **context: Any) -> Any:
        """The object of a component: its target called with its settings and the context.

        A kind of functions gives the target with its settings bound; a component without target its settings.
        MdmkitError names the owner where the target cannot be imported or refuses its settings.
        """
        kind = kind or use.kind
        if kind is None:
            raise TypeError(f"component {use.name!r} has no kind; pass kind=")
        entry = self.find(kind, use.pinned)
        if entry.component.target is None:
            return self._settings(use, entry)
        arguments = self.arguments(use, kind=kind)
        target = self.target(entry)
        if KINDS[kind].function:
            return partial(target, **arguments, **context)
        try:
            return target(**arguments, **context)
        except (ValueError, ImportError) as error:
            raise MdmkitError(f"{kind} {use.name!r}: {error}") from error

    def arguments(self, use: Use, *, kind: str | None = None) -> dict[str, Any]:
        """The settings of a component as the keyword arguments of its target, nested components built.

        A nested component whose kind has a context becomes a factory that takes it as keywords.
        """
        entry = self.find(kind or use.kind or "", use.pinned)
        settings = self._settings(use, entry)
        return {
            field.name: self._argument(field, getattr(settings, field.name))
            for field in attrs.fields(type(settings))
        }

    def _settings(self, use: Use, entry: Entry) -> Any:
        if use.settings is not None:
            return use.settings
        from mdmkit.recipe.structure import Structurer

        try:
            return Structurer(self).use(use.pinned, entry.component.kind).settings
        except Wrong as error:
            raise WrongInput(f"{entry.component.kind} {use.name!r}: {error.problems[0].message}") from None

    def _argument(self, field: attrs.Attribute[Any], value: Any) -> Any:
        if "kind" not in field.metadata or value is None:
            return value
        if isinstance(value, tuple):
            return tuple(self._argument(field, use) for use in value)
        kind: Kind = KINDS[value.kind or field.metadata["kind"]]
        if kind.context and not kind.function:
            return partial(self.build, value, kind=kind.name)
        return self.build(value, kind=kind.name)

    def target(self, entry: Entry) -> Any:
        """What a component's target names, imported; MdmkitError names the owner where it cannot be."""
        component = entry.component
        assert component.target is not None
        module, _, attribute = component.target.partition(":")
        try:
            found = importlib.import_module(module)
            for name in attribute.split("."):
                found = getattr(found, name)
        except Exception as error:
            raise MdmkitError(
                f"{component.kind} {component.name!r} of {entry.owner}: cannot import {component.target}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return found

    def takes(self, use: Use, name: str, *, kind: str) -> bool:
        """Whether a component's target takes an argument of its kind's optional context."""
        entry = self.find(kind, use.pinned)
        return entry.component.target is not None and name in inspect.signature(self.target(entry)).parameters

    def check_recipe(self, recipe: Recipe) -> list[tuple[Plugin, Problem | str]]:
        """What the plugins' own checks find; a text where a check itself fails (`broken` has it then)."""
        found: list[tuple[Plugin, Problem | str]] = []
        modules = {name: module for name, module in self.manager.list_name_plugin() if module is not None}
        for plugin in self.plugins:
            if plugin.name not in modules:
                continue
            others = [module for name, module in modules.items() if name != plugin.name]
            try:
                answers = self.manager.subset_hook_caller("mdmkit_check_recipe", others)(recipe=recipe)
                found += [(plugin, problem) for problems in answers for problem in problems or ()]
            except Exception as error:
                why = f"failed while it checked the recipe: {type(error).__name__}: {error}"
                found.append((plugin, why))
                self.plugins = tuple(attrs.evolve(p, error=why) if p is plugin else p for p in self.plugins)
        return found
