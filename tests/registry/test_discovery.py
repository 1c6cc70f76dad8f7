"""Plugins are found, kept apart, switched off; what is wrong with one is said and harms no other."""

# exact messages stand on one line
# ruff: noqa: E501

from __future__ import annotations

import sys

import pytest

from mdmkit.errors import MdmkitError, WrongInput
from mdmkit.plugins import Registry, load_registry
from mdmkit.recipe import RecipeError, dumps, loads
from tests.recipe import stand_ins
from tests.recipe.stand_ins import MINIMAL
from tests.registry.conftest import PLUGIN, Install

USES_ACME = MINIMAL + '[diffusion]\nschedule = { use = "acme.laplace", scale = 0.25 }\n'


def load(extra: tuple[str, ...] = (), **env: str) -> Registry:
    return load_registry(extra, env, builtins=stand_ins)


def why(registry: Registry, text: str = USES_ACME) -> str:
    """What a recipe that uses acme is told; a recipe that does not use it works."""
    loads(MINIMAL, registry=registry)
    with pytest.raises(RecipeError) as caught:
        loads(text, registry=registry)
    return str(caught.value).removeprefix("recipe.toml:13: diffusion.schedule.use: ")


def test_an_installed_plugin_is_found_by_its_entry_point(install: Install) -> None:
    install("acme-mdm", "1.2", "acme")
    registry = load()
    entry = registry.find("noise_schedule", "acme.laplace")
    assert entry.owner == "acme-mdm 1.2"
    assert entry.doc == "Laplace density over logsnr."
    recipe = loads(USES_ACME, registry=registry)
    assert recipe.diffusion.schedule.settings.scale == 0.25
    assert 'use = "acme.laplace@1"' in dumps(recipe)
    assert registry.build(recipe.diffusion.schedule) == recipe.diffusion.schedule.settings
    loads(USES_ACME.replace("format = 1", 'format = 1\nrequires = ["acme-mdm>=1.2,<2"]'), registry=registry)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise RuntimeError('boom\\nmore')", "cannot be imported: RuntimeError: boom"),
        ("import sys; sys.exit(3)", "cannot be imported: SystemExit: 3"),
        ("def f(:", "cannot be imported: SyntaxError: invalid syntax (acme_mdm.py, line 1)"),
        (PLUGIN.replace("mdmkit_components()", "mdmkit_components(run)"), "its hooks are wrong: PluginValidationError: "),
        (PLUGIN.replace("mdmkit_components()", "mdmkit_component()"), "its hooks are wrong: PluginValidationError: "),
        (PLUGIN.replace("return [", "return 1/0, ["),
         "failed while it listed what it offers: ZeroDivisionError: division by zero"),
        (PLUGIN.replace("return [Component(", "return [("),
         "mdmkit_components gave ('noise_schedule', '{prefix}.laplace', <class 'acme_mdm.Laplace'>), "
         "expected Component(kind, name, settings, target)"),
        (PLUGIN.replace("noise_schedule", "noise_scheduel").replace("{prefix}", "acme"),
         "component 'acme.laplace': unknown kind 'noise_scheduel'; did you mean 'noise_schedule'? (known: "),
        (PLUGIN.replace("{prefix}.", ""),
         "noise_schedule 'laplace': the name must begin with the plugin's entry-point name, as in acme.laplace"),
        (PLUGIN.replace("{prefix}", "other"),
         "noise_schedule 'other.laplace': the name must begin with the plugin's entry-point name, as in acme.laplace"),
        (PLUGIN.replace("{prefix}", "acme").replace("@attrs.frozen\n", ""),
         "noise_schedule 'acme.laplace': settings must be an attrs class, got <class 'acme_mdm.Laplace'>"),
        (PLUGIN.replace("{prefix}", "acme").replace("Laplace)]", "Laplace, None, '2')]"),
         "noise_schedule 'acme.laplace': version must be an integer >= 1, got '2'"),
        (PLUGIN.replace("{prefix}", "acme").replace("Laplace)]", "Laplace, 'acme.x')]"),
         "noise_schedule 'acme.laplace': target must be 'module:attr', got 'acme.x'"),
        (PLUGIN.replace("{prefix}", "acme").replace(
            "Laplace)]", "Laplace, 'a:b'), Component('noise_schedule', 'acme.laplace', Laplace, 'c:d')]"),
         "noise_schedule 'acme.laplace@1' of acme-mdm 1.2 is registered twice, by a:b and by c:d"),
    ],
)  # fmt: skip
def test_a_broken_plugin_breaks_only_the_recipes_that_use_it(
    install: Install, code: str, message: str
) -> None:
    install("acme-mdm", "1.2", "acme", code)
    install("good-mdm", "0.1", "good")
    registry = load()
    said = why(registry)
    assert said.startswith(
        f"unknown noise_schedule 'acme.laplace': plugin 'acme' (acme-mdm 1.2) cannot be used: {message}"
    )
    assert "\n" not in said
    assert [plugin.name for plugin in registry.broken] == ["acme"]
    loads(USES_ACME.replace("acme.", "good."), registry=registry)


def test_two_distributions_that_claim_one_name(install: Install) -> None:
    install("acme-mdm", "1.2", "acme")
    install("other-mdm", "3.0", "acme")
    said = why(load())
    assert "plugin name 'acme' is claimed by " in said
    assert "acme-mdm 1.2" in said
    assert "other-mdm 3.0" in said
    assert said.endswith("; uninstall one")


def test_the_name_of_the_built_ins_is_taken(install: Install) -> None:
    install("acme-mdm", "1.2", "mdmkit")
    registry = load()
    assert [plugin.distribution for plugin in registry.broken] == ["acme-mdm"]
    assert "is claimed by mdmkit 0.1.0 and by acme-mdm 1.2" in str(registry.broken[0].error)
    loads(MINIMAL, registry=registry)


def test_plugins_are_switched_off_by_the_environment(install: Install) -> None:
    install("acme-mdm", "1.2", "acme")
    install("good-mdm", "0.1", "good")
    off = "unknown noise_schedule 'acme.laplace': plugin 'acme' is switched off by MDMKIT_DISABLE_PLUGINS or MDMKIT_PLUGINS"
    for env in ({"MDMKIT_DISABLE_PLUGINS": "x, acme"}, {"MDMKIT_PLUGINS": "good"}, {"MDMKIT_PLUGINS": ""}):
        registry = load_registry((), env, builtins=stand_ins)
        assert why(registry).startswith(off)
        assert "acme_mdm" not in sys.modules
        assert ("good.laplace" in registry.names("noise_schedule")) == (env != {"MDMKIT_PLUGINS": ""})
    assert "acme.laplace" in load(MDMKIT_PLUGINS="acme").names("noise_schedule")


def test_a_plugin_that_is_not_there(install: Install) -> None:
    assert why(load()) == (
        "unknown noise_schedule 'acme.laplace': no plugin 'acme' is installed (known: cosine, sigmoid)"
    )
    install("acme-mdm", "1.2", "acme")
    assert why(load(), USES_ACME.replace("laplace", "laplce")) == (
        "unknown noise_schedule 'acme.laplce'; did you mean 'acme.laplace'? (known: acme.laplace, cosine, sigmoid)"
    )


def test_a_module_from_the_command_line(install: Install) -> None:
    path = install("acme-mdm", "1.2", "acme", "")
    path.with_name("mine.py").write_text(PLUGIN.replace("{prefix}", "my"))
    registry = load(("mine",))
    assert registry.find("noise_schedule", "my.laplace").owner == "module mine"
    assert registry.extra_modules == ("mine",)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "--plugin mine: cannot be imported: ModuleNotFoundError: No module named 'mine'"),
        ("1/0", "--plugin mine: cannot be imported: ZeroDivisionError: division by zero"),
        (PLUGIN.replace("{prefix}.", ""),
         "--plugin mine: noise_schedule 'laplace': the name of a plugin's component needs a prefix, such as my.laplace"),
        (PLUGIN.replace("{prefix}", "acme"),
         "--plugin mine: noise_schedule 'acme.laplace' is claimed by module mine and by acme-mdm 1.2"),
    ],
)  # fmt: skip
def test_a_module_that_was_asked_for_must_work(install: Install, code: str | None, message: str) -> None:
    path = install("acme-mdm", "1.2", "acme")
    if code is not None:
        path.with_name("mine.py").write_text(code)
    with pytest.raises(WrongInput) as caught:
        load(("mine",))
    assert str(caught.value) == message


def test_a_check_that_fails_breaks_only_the_recipes_that_use_the_plugin(install: Install) -> None:
    install("acme-mdm", "1.2", "acme", PLUGIN.replace("{prefix}", "acme") + "\n@hookimpl\n"
            "def mdmkit_check_recipe(recipe):\n    raise KeyError('x')\n")  # fmt: skip
    registry = load()
    with pytest.raises(RecipeError) as caught:
        loads(USES_ACME, registry=registry)
    assert str(caught.value) == (
        "recipe.toml:13: diffusion.schedule: plugin 'acme' (acme-mdm 1.2) "
        "failed while it checked the recipe: KeyError: 'x'"
    )
    registry = load()
    loads(MINIMAL, registry=registry)
    assert [plugin.name for plugin in registry.broken] == ["acme"]


def test_recipes_of_plugins_are_found_by_name(install: Install, tmp_path) -> None:
    (tmp_path / "fast.toml").write_text(USES_ACME)
    install("acme-mdm", "1.2", "acme", PLUGIN.replace("{prefix}", "acme") + "\nfrom pathlib import Path\n@hookimpl\n"
            "def mdmkit_recipes():\n    return [Path(__file__).parent / 'fast.toml']\n")  # fmt: skip
    from mdmkit.recipe import load as load_recipe

    registry = load()
    assert load_recipe("acme:fast", registry=registry) == loads(USES_ACME, registry=registry)
    with pytest.raises(WrongInput, match=r"unknown recipe 'acme:fats'; did you mean 'acme:fast'\?"):
        load_recipe("acme:fats", registry=registry)
    with pytest.raises(MdmkitError, match=r"no such file; did you mean acme:fast\?"):
        load_recipe("fast.tml", registry=registry)


def test_hooks_reach_every_plugin(install: Install) -> None:
    install("acme-mdm", "1.2", "acme", PLUGIN.replace("{prefix}", "acme") + "\nseen = []\n@hookimpl\n"
            "def mdmkit_step_end(step, metrics):\n    seen.append((step, metrics))\n")  # fmt: skip
    load().hook.mdmkit_step_end(run=None, step=3, metrics={"loss": 1})
    assert sys.modules["acme_mdm"].seen == [(3, {"loss": 1})]
