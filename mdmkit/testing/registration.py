"""What every registration promises, whatever its kind: settings without torch that mirror the target."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
from typing import Any

import attrs

from mdmkit.plugins import Component
from mdmkit.recipe import Use

from .subject import Subject, load

__all__ = ["check_object", "check_registration", "check_settings_class"]


def check_settings_class(it: Subject) -> None:
    """A frozen attrs class with a docstring and a help text a field, importable without torch."""
    settings = it.component.settings
    where = f"{settings.__module__}.{settings.__qualname__}"
    it.must(attrs.has(settings), f"settings {where} must be an attrs class; decorate it with @attrs.frozen")
    it.must(_frozen(settings), f"settings {where} can be changed after they are made; use @attrs.frozen")
    first = (inspect.getdoc(settings) or "").strip().split("\n")[0]
    it.must(first, f"settings {where} have no docstring; its first line is what `mdmkit list` shows")
    for field in attrs.fields(settings):
        it.must(
            field.metadata.get("help"),
            f"field {field.name!r} of {where} has no help text; declare it with opt() or slot()",
        )
        _check_default(it, field)
    cause = _why_not_light(settings.__module__, tuple(sys.path))
    it.must(
        cause is None, f"settings module {settings.__module__} {cause}; keep torch in the target's module"
    )


def _frozen(cls: type) -> bool:
    try:
        object.__new__(cls).anything = 0  # type: ignore[attr-defined]
    except attrs.exceptions.FrozenInstanceError:
        return True
    except AttributeError:  # slots, not frozen
        return False
    return False


def _check_default(it: Subject, field: attrs.Attribute[Any]) -> None:
    value = field.default
    if value is attrs.NOTHING or value is None or isinstance(value, (Use, attrs.Factory)):  # type: ignore[arg-type]
        return
    meta = field.metadata
    tests = {
        "gt": lambda x, b: x > b,
        "ge": lambda x, b: x >= b,
        "lt": lambda x, b: x < b,
        "le": lambda x, b: x <= b,
        "choices": lambda x, b: x in b,
    }
    for element in value if isinstance(value, tuple) else (value,):
        for name, holds in tests.items():
            it.must(
                name not in meta or isinstance(element, Use) or holds(element, meta[name]),
                f"default of field {field.name!r} is {element!r}, outside {name}={meta.get(name)!r}",
            )


@functools.cache
def _why_not_light(module: str, path: tuple[str, ...]) -> str | None:
    """Why `module` is not light (None: it is), read in a fresh interpreter: here torch is long imported."""
    code = (
        f"import sys; sys.path[:] = {list(path)!r}\n"
        f"import importlib; importlib.import_module({module!r})\n"
        "sys.exit(7 if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    if done.returncode == 7:
        return "imports torch"
    return f"cannot be imported on its own ({(done.stderr.strip().splitlines() or ['no message'])[-1]})"


def check_registration(it: Subject) -> None:
    """The target takes exactly the settings, with the same defaults, and the context of its kind."""
    component = it.component
    if component.target is None:
        it.must(
            not it.kind.context,
            f"target is missing: a {component.kind} is given {', '.join(it.kind.context)} when it is built",
        )
        return
    target = it.attempt(f"importing the target {component.target}", lambda: load(str(component.target)))
    it.must(callable(target), f"target {component.target} is not callable")
    _check_mirror(it, component, target)


def _check_mirror(it: Subject, component: Component, target: Any) -> None:
    fields = {field.name: field for field in attrs.fields(component.settings)}
    context, optional = set(it.kind.context), set(it.kind.optional)
    both = sorted((context | optional) & fields.keys())
    it.must(not both, f"settings overlap what the program gives a {component.kind}: {', '.join(both)}")
    parameters = _parameters(target, function=it.kind.function)
    for name in sorted(context - parameters.keys()):
        it.breaks(
            f"target {component.target} does not take {name!r}, which the program gives a {component.kind}"
        )
    for name in (name for name in parameters if name not in context | optional | fields.keys()):
        it.breaks(f"target {component.target} takes {name!r}, which the settings lack")
    for name, field in fields.items():
        hint = "; a function's settings are its keyword-only arguments" if it.kind.function else ""
        it.must(
            name in parameters, f"settings have {name!r}, which target {component.target} does not take{hint}"
        )
        if "kind" in field.metadata:  # the target's default is an object, the setting's a name
            continue
        ours, theirs = _default(field), parameters[name].default
        if ours in ({}, []) and theirs is None:  # a signature holds no container that could be changed
            continue
        if theirs is inspect.Parameter.empty:
            theirs = attrs.NOTHING
        it.must(
            type(ours) is type(theirs) and ours == theirs,
            f"default of {name!r} is {_shown(ours)} in the settings, {_shown(theirs)} in {component.target}",
        )


def _parameters(target: Any, *, function: bool) -> dict[str, inspect.Parameter]:
    """What settings and context fill: a constructor's arguments, a function's keyword-only ones."""
    empty = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(target).parameters
    kept = {name: p for name, p in found.items() if p.kind not in empty}
    return {n: p for n, p in kept.items() if p.kind is p.KEYWORD_ONLY} if function else kept


def _default(field: attrs.Attribute[Any]) -> Any:
    default: Any = field.default
    return default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]


def _shown(default: Any) -> str:
    return "required" if default is attrs.NOTHING else repr(default)


def check_object(it: Subject, made: Any) -> None:
    """The built object satisfies the Protocol (or base class) of its kind."""
    protocol = load(it.kind.protocol)
    if not getattr(protocol, "_is_protocol", False):
        it.must(isinstance(made, protocol), f"builds a {type(made).__name__}, not a {it.kind.protocol}")
        return
    for name in _members(protocol):
        it.must(hasattr(made, name), f"has no {name!r}, which {it.kind.protocol} asks for")
        if callable(getattr(protocol, name, None)):
            it.must(callable(getattr(made, name)), f"{name!r} of {it.kind.protocol} is not callable")


def _members(protocol: type) -> list[str]:
    bases = [
        base
        for base in protocol.__mro__
        if getattr(base, "_is_protocol", False) and base.__name__ != "Protocol"
    ]
    names = {name for base in bases for name in (*vars(base), *vars(base).get("__annotations__", ()))}
    return sorted(name for name in names if not name.startswith("_") or name == "__call__")
