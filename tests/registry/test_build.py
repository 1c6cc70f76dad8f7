"""From a component to its object: arguments, nested components, context, and what can go wrong."""

from __future__ import annotations

from functools import partial

import attrs
import pytest

from mdmkit.errors import MdmkitError, WrongInput
from mdmkit.plugins import KINDS, Component, Registry, hookimpl, load_registry
from mdmkit.recipe import Use, opt, slot
from tests.recipe import stand_ins


@pytest.fixture(scope="module")
def registry() -> Registry:
    return stand_ins.registry()


def test_the_target_is_called_with_settings_and_context(registry: Registry) -> None:
    use = Use("bytes", settings=stand_ins.Width(width=7))
    assert registry.build(use, kind="text_encoder", device="cpu") == {"width": 7, "device": "cpu"}


def test_without_settings_the_defaults_count(registry: Registry) -> None:
    assert registry.build(Use("bytes", kind="text_encoder")) == {"width": 64}
    with pytest.raises(WrongInput, match="text_encoder 't5': missing; expected str"):
        registry.build(Use("t5", kind="text_encoder"))


def test_a_component_without_target_is_its_settings(registry: Registry) -> None:
    settings = stand_ins.Web(urls="x.tar")
    assert registry.build(Use("webdataset", settings=settings), kind="dataset") is settings


def test_a_kind_of_functions_gives_the_function_with_its_settings_bound(registry: Registry) -> None:
    made = registry.build(Use("mse"), kind="loss")
    assert isinstance(made, partial)
    assert made.func is stand_ins.built
    assert made(prediction=1) == {"prediction": 1}


def test_nested_components_are_objects_or_factories(registry: Registry) -> None:
    core = registry.build(Use("unet"), kind="core", cond_dim=3)
    assert core["cond_dim"] == 3
    # a block needs to know its widths, so that the core gets a factory
    assert core["block"](in_channels=4, out_channels=8) == {
        "norm_groups": 32, "kernel": 3, "in_channels": 4, "out_channels": 8
    }  # fmt: skip

    @attrs.frozen
    class Outer:
        """Holds others."""

        schedule: Use = slot("noise_schedule", "cosine", "no context: an object")
        losses: tuple[Use, ...] = slot("loss", ("mse", "mse"), "functions")
        nothing: Use | None = slot("core", None, "none")

    class Module:
        @staticmethod
        @hookimpl
        def mdmkit_components():
            outer = Component("guidance", "outer", Outer, "tests.recipe.stand_ins:built")
            return [*stand_ins.COMPONENTS, outer]

    Module.__name__ = "outer"
    made = load_registry(env={"MDMKIT_PLUGINS": ""}, builtins=Module).build(Use("outer"), kind="guidance")
    assert made["schedule"] == {"offset": 0.008, "clamp": 15.0}
    assert [loss() for loss in made["losses"]] == [{}, {}]
    assert made["nothing"] is None


def test_a_target_that_cannot_be_imported_names_its_owner(registry: Registry) -> None:
    with pytest.raises(MdmkitError) as caught:
        registry.build(Use("absent"), kind="core")
    assert str(caught.value) == (
        "core 'absent' of mdmkit 0.1.0: cannot import no_such_module:Core: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )


def test_what_a_component_refuses_is_one_line(registry: Registry) -> None:
    with pytest.raises(MdmkitError) as caught:
        registry.build(Use("refuses"), kind="core")
    assert str(caught.value) == "core 'refuses': channels=3 cannot be; try channels=4"


def test_a_use_without_kind_is_our_own_mistake(registry: Registry) -> None:
    with pytest.raises(TypeError, match="has no kind"):
        registry.build(Use("cosine"))


def test_versions(registry: Registry) -> None:
    @attrs.frozen
    class Old:
        """First version."""

        x: int = opt(1)

    class Module:
        @staticmethod
        @hookimpl
        def mdmkit_components():
            return [Component("noise_schedule", "v", Old, None, number) for number in (2, 10, 9)]

    Module.__name__ = "versions"
    other = load_registry(env={"MDMKIT_PLUGINS": ""}, builtins=Module)
    assert other.find("noise_schedule", "v").component.version == 10
    assert other.find("noise_schedule", "v@9").component.version == 9
    assert [e.component.version for e in other.entries("noise_schedule")] == [2, 9, 10]
    for name, message in {
        "v@3": r"noise_schedule 'v' has no version 3 \(known: 2, 9, 10\)",
        "v@": "expected name or name@version",
        "v@-1": "expected name or name@version",
        "v@1.0": "expected name or name@version",
        "w": r"unknown noise_schedule 'w' \(known: v\)",
    }.items():
        with pytest.raises(WrongInput, match=message):
            other.find("noise_schedule", name)
    with pytest.raises(WrongInput, match=r"unknown kind 'noise_scheduel'; did you mean 'noise_schedule'\?"):
        other.find("noise_scheduel", "v")


def test_kinds_are_described() -> None:
    for kind in KINDS.values():
        assert kind.doc
        assert kind.protocol.count(":") == 1
