"""What README and docs say is so: their Python runs, their TOML is read as a recipe, their commands exist."""

from __future__ import annotations

import copy
import importlib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tomli
import tomli_w
import typer
import typer.main

from mdmkit.cli import main
from mdmkit.cli.verbs import VERBS, verbs
from mdmkit.plugins import Registry, load_registry
from mdmkit.recipe import loads

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, what stands behind that, its text and where it is."""

    language: str
    more: str
    text: str
    place: str


def blocks(language: str) -> list[Any]:
    """The blocks of a language on all pages, as parameters of a test."""
    found = []
    for page, path in sorted(PAGES.items()):
        text = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            block = Block(match[1], match[2].strip(), match[3], f"{page}:{line}")
            if block.language == language:
                found.append(pytest.param(block, id=block.place))
    return found


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(env={"MDMKIT_PLUGINS": ""})


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to run examples in: `runs/quickstart` after one step, the recipes, files that blocks name."""
    folder = tmp_path_factory.mktemp("desk")
    # brings diffusers in, beside a torchvision that cannot load its operators too
    importlib.import_module("mdmkit.diffusers_pipeline")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    before, modules, path = Path.cwd(), set(sys.modules), list(sys.path)
    os.environ["MDMKIT_PLUGINS"] = ""
    try:
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        small = ["train.steps=1", "train.batch=2", "train.loggers=[]"]
        small += ["sample.steps=2", "sample.count=2", "evaluate.metrics=[]"]
        sets = [f"--set={item}" for item in small]
        assert main(["run", "recipes/quickstart.toml", "--out", "runs/quickstart", *sets]) == 0
        for param in blocks("python"):
            (block,) = param.values
            if name := named_file(block):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(block.text, encoding="utf-8")
        yield folder
    finally:
        os.chdir(before)
        sys.path[:] = path
        del os.environ["MDMKIT_PLUGINS"]
        for name in set(sys.modules) - modules:
            if name.startswith("acme"):
                del sys.modules[name]


def named_file(block: Block) -> str | None:
    """The file that a block is, as its first line says."""
    match = re.match(r"# (\w+/\w+\.py)\n", block.text)
    return match[1] if match else None


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(block: Block, desk: Path) -> None:
    name = named_file(block)
    if name is None:
        exec(compile(block.text, block.place, "exec"), {"__name__": "example"})
    else:
        importlib.import_module(name.removesuffix(".py").replace("/", "."))


def test_the_plugin_of_the_docs_conforms(desk: Path) -> None:
    test = importlib.import_module("acme_mdm.test_conformance")
    components = importlib.import_module("acme_mdm.plugin").mdmkit_components()
    assert [component.name for component in components] == ["acme.line"]
    for component in components:
        test.test_component_conforms(component)
    picked = load_registry(["acme_mdm.plugin"], env={"MDMKIT_PLUGINS": ""})
    text = (ROOT / "recipes/quickstart.toml").read_text(encoding="utf-8")
    recipe = loads(text, ['diffusion.schedule={use="acme.line", first=6.0}'], picked)
    assert recipe.diffusion.schedule.settings.first == 6.0


@pytest.mark.parametrize("block", blocks("toml"))
def test_toml_is_a_recipe_or_a_part_of_one(block: Block, registry: Registry) -> None:
    given = tomli.loads(block.text)
    if block.more == "project":
        return
    whole = tomli.loads((ROOT / "recipes/quickstart.toml").read_text(encoding="utf-8"))
    if "format" not in given:
        given = laid_over(whole, given)
    loads(tomli_w.dumps(given), registry=registry, name=block.place)


STAGED = ("steps", "batch", "levels")


def laid_over(whole: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """A recipe with the keys of a part in the place of its own; a component's table is replaced as one."""
    made = copy.deepcopy(whole)
    for name, value in part.items():
        both = isinstance(value, dict) and isinstance(made.get(name), dict)
        made[name] = made[name] | value if both and "use" not in value else value
    if "stages" in part.get("growth", {}):  # they stand there
        made["train"] = {key: value for key, value in made["train"].items() if key not in STAGED}
    return made


@pytest.mark.parametrize("block", blocks("console"))
def test_console_says_what_the_docs_say(block: Block, desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command, *expected = block.text.splitlines()
    capfd.readouterr()
    main(arguments(command.removeprefix("$ ")))
    captured = capfd.readouterr()
    assert (captured.out + captured.err).splitlines() == expected


def arguments(command: str) -> list[str]:
    """What stands behind `mdmkit` or `python -m mdmkit` in a command line, no comment, no redirection."""
    words = shlex.split(command, comments=True)
    start = next(i for i, word in enumerate(words) if word.rpartition("/")[2] == "mdmkit") + 1
    rest = words[start:]
    return rest[: rest.index(">")] if ">" in rest else rest


def commands() -> list[Any]:
    found = []
    for param in blocks("bash"):
        (block,) = param.values
        for number, line in enumerate(block.text.splitlines(), 1):
            last = line.rpartition("&&")[2].strip()
            if re.search(r"(^|[\s/])mdmkit (?!-)", last):
                found.append(pytest.param(last, id=f"{block.place}+{number}"))
    return found


def options(verb: str) -> set[str]:
    """The options of a verb, as its parser has them."""
    module, _, attribute = VERBS[verb].target.partition(":")
    app = typer.Typer(add_completion=False)
    app.command(verb)(getattr(importlib.import_module(module), attribute))
    return {"--help", *(option for p in typer.main.get_command(app).params for option in p.opts)}


@pytest.mark.parametrize("command", commands())
def test_commands_exist(command: str) -> None:
    """Verbs, options and recipe files that the pages name are there."""
    verb, *rest = arguments(command)
    assert verb in verbs()
    assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= options(verb)
    for word in rest:
        if word.startswith("recipes/"):
            assert list(ROOT.glob(word)), word


def test_every_list_of_recipes_is_whole() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = set(re.findall(r"`(\w+\.toml)`", readme))
    assert table >= {path.name for path in (ROOT / "recipes").glob("*.toml")}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page: str) -> None:
    text = PAGES[page].read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        other = PAGES[page].parent / file if file else PAGES[page]
        assert other.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
