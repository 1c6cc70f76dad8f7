"""Imports point down: values <- nn, text, data <- sampling <- train, evaluate, interop.

Components know nothing of plugins and recipes.
The imports are read from the source, those inside functions too; what only a type checker sees is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mdmkit"

# each room may import from rooms of the same or a lower number
LEVELS = {
    "errors": 0,
    "streams": 0,
    "divisors": 0,
    "tables": 0,
    "schedules": 1,
    "targets": 1,
    "weighting": 1,
    "times": 1,
    "grid": 1,
    "pyramid": 1,
    "resolutions": 1,
    "growth": 1,
    "stages": 1,
    "operators": 1,
    "diffusion": 1,
    "torchvision_ops": 1,
    "nn": 2,
    "text": 2,
    "data": 2,
    "sampling": 3,
    "train": 4,
    "evaluate": 4,
    "interop": 4,
}
BESIDE = {"recipe", "plugins", "builtin", "testing"}  # they name components by string only
# they see both sides
ABOVE = {"assemble", "model_folder", "diffusers_pipeline", "start", "weak_model", "cascade", "cli"}
ABOVE |= {"__main__"}
NOT_IN_COMPONENTS = {"pluggy", "cattrs", "tomli", "tomli_w", "typer"}


def room(module: str) -> str:
    """The room of a dotted module of mdmkit: mdmkit.nn.blocks -> nn."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, absolute, with its line; `if TYPE_CHECKING` blocks are left out."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    package = module.removesuffix(".__init__") if path.name == "__init__.py" else module.rpartition(".")[0]
    skipped: set[int] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            skipped |= {id(inner) for part in node.body for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            yield base, node.lineno
            if base == "mdmkit":  # `from mdmkit import nn` names a module
                yield from ((f"mdmkit.{alias.name}", node.lineno) for alias in node.names)


def wrong_arrow(here: str, target: str) -> str | None:
    """Why a file of room `here` must not import `target`, or None."""
    top, there = target.split(".")[0], room(target)
    if here in LEVELS:
        if top in NOT_IN_COMPONENTS:
            return f"a component imports {top}"
        if top == "mdmkit" and there in BESIDE | ABOVE:
            return f"a component imports mdmkit.{there}"
        if top == "mdmkit" and LEVELS.get(there, -1) > LEVELS[here]:
            return f"{here} (level {LEVELS[here]}) imports {there} (level {LEVELS[there]})"
    elif here in ("recipe", "plugins", "builtin"):
        if top == "torch":
            return f"{here} imports torch"
        if top == "mdmkit" and (there in ABOVE or LEVELS.get(there, 0) > 0):
            return f"{here} imports {there}, which it may only name by a string"
    return None


def sources() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "template" not in str(path)]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    here = "" if parts == ("__init__",) else parts[0]
    assert here in {*LEVELS, *BESIDE, *ABOVE, ""}, f"{here} has no place among the rooms"
    found = [f"line {line}: {why}" for target, line in imports(path) if (why := wrong_arrow(here, target))]
    assert not found


def test_there_is_no_room_for_everything() -> None:
    assert not [path for path in sources() if path.stem in ("utils", "common", "helpers")]


@pytest.mark.parametrize(
    ("here", "target", "wrong"),
    [
        ("schedules", "mdmkit.nn.blocks", True),
        ("streams", "mdmkit.targets", True),
        ("schedules", "mdmkit.streams", False),
        ("nn", "mdmkit.sampling", True),
        ("nn", "mdmkit.text", False),
        ("nn", "mdmkit.nn.blocks", False),
        ("sampling", "mdmkit.diffusion", False),
        ("train", "mdmkit.recipe", True),
        ("evaluate", "mdmkit.train.logs", False),
        ("data", "tomli", True),
        ("builtin", "mdmkit.nn", True),
        ("builtin", "mdmkit.recipe.options", False),
        ("recipe", "torch", True),
        ("cli", "torch", False),
        ("cli", "mdmkit.nn", False),
    ],
)
def test_the_rule_itself(here: str, target: str, wrong: bool) -> None:
    assert (wrong_arrow(here, target) is not None) == wrong


def test_every_form_of_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
from typing import TYPE_CHECKING
import mdmkit.nn.blocks as b
from . import sibling
from .. import streams
from ..train.loop import train
from mdmkit import assemble
if TYPE_CHECKING:
    from mdmkit.cli import main
def f():
    from mdmkit.data import folder
"""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "mdmkit" / "nn" / "made.py"
    path.parent.mkdir(parents=True)
    path.write_text(code)
    found = {target for target, _ in imports(path)}
    assert found == {
        "typing", "mdmkit.nn.blocks", "mdmkit.nn", "mdmkit", "mdmkit.streams", "mdmkit.train.loop",
        "mdmkit.assemble", "mdmkit.data",
    }  # fmt: skip
