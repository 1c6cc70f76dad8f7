"""Finding plugins: the built-ins, installed entry points, and modules named on the command line. No torch.

pluggy's own `load_setuptools_entrypoints` is not used: it skips a name that is taken in silence, and one
plugin that fails to import takes all others with it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pluggy

from mdmkit.errors import WrongInput
from mdmkit.recipe.problems import unknown

from . import hooks
from .component import Component
from .kinds import KINDS
from .registry import Entry, Plugin, Registry

__all__ = ["load_registry"]

BUILTIN = "mdmkit"


class Unusable(Exception):
    """Why a plugin cannot be used, as one line."""


@attrs.frozen
class Offer:
    """What one plugin offers, read from its hooks."""

    components: tuple[Component, ...]
    recipes: dict[str, Path]


def load_registry(
    extra_modules: Sequence[str] = (), env: Mapping[str, str] = os.environ, *, builtins: Any = None
) -> Registry:
    """The components of mdmkit and of every plugin that is installed, switched on, and works.

    A plugin that cannot be used is recorded in `registry.broken` and breaks only the recipes that use it; one
    of `extra_modules` was asked for by name, so that its failure is WrongInput. `builtins` replaces mdmkit's
    own components. MDMKIT_DISABLE_PLUGINS=a,b leaves plugins out; MDMKIT_PLUGINS=a takes only these (empty:
    none).
    """
    loader = Loader()
    builtins = builtins or importlib.import_module("mdmkit.builtin")
    version = importlib.import_module("mdmkit").__version__
    loader.add(Plugin(BUILTIN, builtins.__name__, "mdmkit", version), builtins)
    switched_off = []
    for name, points in installed().items():
        if not switched_on(name, env):
            switched_off.append(name)
            continue
        plugin = described(name, points[0])
        if len(points) > 1 or name == BUILTIN:
            owners = [described(name, point).owner for point in points]
            if name == BUILTIN:
                owners.insert(0, f"mdmkit {version}")
            loader.refuse(
                plugin, f"plugin name '{name}' is claimed by {' and by '.join(owners)}; uninstall one"
            )
            continue
        try:
            loader.add(plugin, load(points[0]))
        except Unusable as error:
            loader.refuse(plugin, str(error))
    for module in extra_modules:
        try:
            loaded = importlib.import_module(module)
            loader.add(Plugin(module, module), loaded)
        except Unusable as error:
            raise WrongInput(f"--plugin {module}: {error}") from error
        except Exception as error:
            raise WrongInput(f"--plugin {module}: cannot be imported: {cause(error)}") from error
    return loader.registry(switched_off=switched_off, extra_modules=extra_modules)


def installed() -> dict[str, list[importlib.metadata.EntryPoint]]:
    """The entry points of plugins by name; more than one for a name that several distributions claim."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group="mdmkit"):
        found.setdefault(point.name, []).append(point)
    return dict(sorted(found.items()))


def switched_on(name: str, env: Mapping[str, str]) -> bool:
    listed = [part.strip() for part in env.get("MDMKIT_PLUGINS", "").split(",")]
    off = [part.strip() for part in env.get("MDMKIT_DISABLE_PLUGINS", "").split(",")]
    return name not in off and ("MDMKIT_PLUGINS" not in env or name in listed)


def described(name: str, point: importlib.metadata.EntryPoint) -> Plugin:
    distribution = point.dist
    if distribution is None:
        return Plugin(name, point.value)
    return Plugin(name, point.value, distribution.name, distribution.version)


def cause(error: BaseException) -> str:
    """An exception as one line: its type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def load(point: importlib.metadata.EntryPoint) -> Any:
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise Unusable(f"cannot be imported: {cause(error)}") from error


def new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("mdmkit")
    manager.add_hookspecs(hooks)
    return manager


class Loader:
    """Collects plugins; each is tried in a manager of its own, so that a broken one leaves no trace."""

    def __init__(self) -> None:
        self.manager = new_manager()
        self.plugins: list[Plugin] = []
        self.entries: list[Entry] = []
        self.recipes: dict[str, Path] = {}

    def add(self, plugin: Plugin, module: Any) -> None:
        """Take over what a plugin offers; Unusable where it is not in order."""
        offer = read(plugin, module)
        try:
            self.manager.register(module, plugin.name)
        except ValueError as error:
            raise Unusable(f"is registered already: {cause(error)}") from error
        if plugin.distribution is None:
            self.no_taken_prefix(plugin, offer)
        self.plugins.append(plugin)
        self.entries += [Entry(component, plugin) for component in offer.components]
        self.recipes |= offer.recipes

    def no_taken_prefix(self, plugin: Plugin, offer: Offer) -> None:
        """A module that is not installed chooses its prefix, but not one that is taken."""
        taken = {
            entry.component.name.partition(".")[0]: entry.owner
            for entry in self.entries
            if "." in entry.component.name
        }
        for component in offer.components:
            owner = taken.get(component.name.partition(".")[0])
            if owner is not None:
                self.manager.unregister(name=plugin.name)
                raise Unusable(
                    f"{component.kind} {component.name!r} is claimed by {plugin.owner} and by {owner}"
                )

    def refuse(self, plugin: Plugin, error: str) -> None:
        self.plugins.append(attrs.evolve(plugin, error=error))

    def registry(self, **more: Any) -> Registry:
        return Registry(
            manager=self.manager, plugins=self.plugins, entries=self.entries, recipes=self.recipes, **more
        )


def read(plugin: Plugin, module: Any) -> Offer:
    """What a plugin's hooks give, checked; Unusable otherwise."""
    manager = new_manager()
    try:
        manager.register(module, plugin.name)
        manager.check_pending()
    except Exception as error:
        raise Unusable(f"its hooks are wrong: {cause(error)}") from error
    try:
        components = [c for answer in manager.hook.mdmkit_components() for c in answer]
        paths = [Path(path) for answer in manager.hook.mdmkit_recipes() for path in answer]
    except Exception as error:
        raise Unusable(f"failed while it listed what it offers: {cause(error)}") from error
    seen: dict[tuple[str, str, int], Component] = {}
    for component in components:
        check(component, plugin)
        key = (component.kind, component.name, component.version)
        if key in seen:
            first, second = (c.target or c.settings.__qualname__ for c in (seen[key], component))
            raise Unusable(
                f"{component.kind} '{component.name}@{component.version}' of {plugin.owner} "
                f"is registered twice, by {first} and by {second}"
            )
        seen[key] = component
    prefix = plugin.name
    return Offer(tuple(components), {f"{prefix}:{path.stem}": path for path in sorted(paths)})


def check(component: Any, plugin: Plugin) -> None:
    """Unusable where a registration is not in order."""
    if not isinstance(component, Component):
        raise Unusable(
            f"mdmkit_components gave {component!r}, expected Component(kind, name, settings, target)"
        )
    what = f"{component.kind} {component.name!r}"
    if component.kind not in KINDS:
        why = unknown(f"unknown kind {component.kind!r}", component.kind, KINDS)
        raise Unusable(f"component {component.name!r}: {why}")
    if not (isinstance(component.settings, type) and attrs.has(component.settings)):
        raise Unusable(f"{what}: settings must be an attrs class, got {component.settings!r}")
    if type(component.version) is not int or component.version < 1:
        raise Unusable(f"{what}: version must be an integer >= 1, got {component.version!r}")
    if component.target is not None and component.target.count(":") != 1:
        raise Unusable(f"{what}: target must be 'module:attr', got {component.target!r}")
    prefix, dot, rest = component.name.partition(".")
    if plugin.name == BUILTIN and plugin.distribution == "mdmkit":
        return
    if plugin.distribution is None:
        if not (prefix and dot and rest):
            raise Unusable(
                f"{what}: the name of a plugin's component needs a prefix, such as my.{component.name}"
            )
    elif prefix != plugin.name or not rest:
        raise Unusable(
            f"{what}: the name must begin with the plugin's entry-point name, as in "
            f"{plugin.name}.{component.name.rpartition('.')[2]}"
        )
