"""`check_component`: everything that a component promises, tried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from mdmkit.plugins import KINDS, Component, Entry, Plugin, Registry, load_registry
from mdmkit.recipe import Use

from . import growth, nets, rooms, sampling, training, values
from .registration import check_object, check_registration, check_settings_class
from .subject import ConformanceError, Subject

__all__ = ["BATTERIES", "check_component"]

BATTERIES: dict[str, Callable[[Subject], None]] = {
    "noise_schedule": values.noise_schedule,
    "weighting": values.weighting,
    "time_sampler": values.time_sampler,
    "loss": values.loss,
    "resolution_sampler": values.resolution_sampler,
    "growth": growth.growth,
    "block": nets.block,
    "attention": nets.attention,
    "core": nets.core,
    "temporal_layer": nets.temporal_layer,
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
    registry: Registry | None = None,
) -> None:
    """Try out, on the CPU, every promise that `component` makes by its registration and by its kind.

    component: a registration, or "kind/name" of an installed one.
    settings: sample settings, an object of the settings class; its defaults where not given. Keep them small.
    context: replaces parts of what the battery gives to the component when it is built.
    build: `build(settings, **context)` makes the object where the registry cannot (no files, say).
    registry: where components in nested slots are found; what is installed where not given.
    Raises ConformanceError, which names the component, the promise and what broke it.
    """
    registry = registry or load_registry()
    tried = _registration(component, registry)
    if tried.kind not in KINDS:
        raise ConformanceError(f"{tried.name}: unknown kind {tried.kind!r} (known: {', '.join(KINDS)})")
    entry = Entry(tried, Plugin("under test", tried.settings.__module__))
    entries = [*registry.entries(), entry]
    registry = Registry(manager=registry.manager, plugins=registry.plugins, entries=entries)

    def make(chosen: Any, given: Mapping[str, Any]) -> Any:
        if build is not None:
            return build(chosen, **given)
        return registry.build(Use(tried.name, tried.version, chosen), kind=tried.kind, **given)

    def make_and_check(chosen: Any, given: Mapping[str, Any]) -> Any:
        made = subject.attempt("building it", lambda: make(chosen, given))
        check_object(subject, made)
        return made

    subject = Subject(tried, KINDS[tried.kind], settings, make_and_check, context or {})
    check_settings_class(subject)
    check_registration(subject)
    if settings is None:
        subject = attrs.evolve(subject, settings=_defaults(subject))
    elif not isinstance(settings, tried.settings):
        subject.breaks(f"sample settings are a {type(settings).__name__}, not a {tried.settings.__name__}")
    BATTERIES[tried.kind](subject)


def _registration(component: Component | str, registry: Registry) -> Component:
    if isinstance(component, Component):
        return component
    kind, _, name = component.partition("/")
    return registry.find(kind, name).component


def _defaults(subject: Subject) -> Any:
    cls = subject.component.settings
    required = [field.name for field in attrs.fields(cls) if field.default is attrs.NOTHING]
    if required:
        subject.breaks(
            f"has required settings ({', '.join(required)}); give samples: check_component(settings=...)"
        )
    return cls()
