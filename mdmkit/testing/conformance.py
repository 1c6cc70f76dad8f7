"""`check_component`: everything that a component promises, tried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from mdmkit.plugins import KINDS, Component

from . import nets, rooms, sampling, training, values
from .registration import check_object, check_registration, check_settings_class
from .subject import ConformanceError, Subject

__all__ = ["BATTERIES", "check_component"]

BATTERIES: dict[str, Callable[[Subject], None]] = {
    "noise_schedule": values.noise_schedule,
    "weighting": values.weighting,
    "time_sampler": values.time_sampler,
    "loss": values.loss,
    "resolution_sampler": values.resolution_sampler,
    "growth": values.growth,
    "block": nets.block,
    "attention": nets.attention,
    "core": nets.core,
    "shell": nets.shell,
    "text_encoder": nets.text_encoder,
    "sampler": sampling.sampler,
    "spacing": sampling.spacing,
    "guidance": sampling.guidance,
    "threshold": sampling.threshold,
    "dataset": rooms.dataset,
    "metric": rooms.metric,
    "logger": rooms.logger,
    "optimizer": training.optimizer,
    "lr_schedule": training.lr_schedule,
}


def check_component(
    component: Component | str,
    *,
    settings: Any = None,
    context: Mapping[str, Any] | None = None,
    build: Callable[..., Any] | None = None,
    registry: Any = None,
) -> None:
    """Try out, on the CPU, every promise that `component` makes by its registration and by its kind.

    component: a registration, or "kind/name" of an installed one.
    settings: sample settings, an object of the settings class; its defaults where not given. Keep them small.
    context: replaces parts of what the battery gives to the component when it is built.
    build: `build(settings, **context)` makes the object where the registry cannot (no files, say).
    registry: where components in nested slots are found; what is installed where not given.
    Raises ConformanceError, which names the component, the promise and what broke it.
    """
    from mdmkit.plugins import Entry, Plugin, Registry, load_registry
    from mdmkit.recipe import Use

    registry = registry or load_registry()
    if isinstance(component, str):
        kind_name, _, name = component.partition("/")
        component = registry.find(kind_name, name).component
    if component.kind not in KINDS:
        known = ", ".join(KINDS)
        raise ConformanceError(f"{component.name}: unknown kind {component.kind!r} (known: {known})")
    entry = Entry(component, Plugin("under test", component.settings.__module__))
    registry = Registry(
        manager=registry.manager, plugins=registry.plugins, entries=[*registry.entries(), entry]
    )

    def make(chosen: Any, given: Mapping[str, Any]) -> Any:
        if build is not None:
            return build(chosen, **given)
        use = Use(component.name, component.version, chosen)
        return registry.build(use, kind=component.kind, **given)

    subject = Subject(component, KINDS[component.kind], settings, make, context or {})
    check_settings_class(subject)
    check_registration(subject)
    if settings is None:
        subject = attrs.evolve(subject, settings=_defaults(subject))
    subject.must(
        isinstance(subject.settings, component.settings),
        f"sample settings are a {type(subject.settings).__name__}, not a {component.settings.__name__}",
    )

    def make_and_check(chosen: Any, given: Mapping[str, Any]) -> Any:
        made = subject.attempt("building it", lambda: make(chosen, given))
        check_object(subject, made)
        return made

    BATTERIES[component.kind](attrs.evolve(subject, make=make_and_check))


def _defaults(subject: Subject) -> Any:
    cls = subject.component.settings
    required = [field.name for field in attrs.fields(cls) if field.default is attrs.NOTHING]
    subject.must(
        not required,
        f"has required settings ({', '.join(required)}); give samples: check_component(settings=...)",
    )
    return cls()
