"""One formula, one place: no equation is written out in two functions."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import mdmkit

ROOT = Path(mdmkit.__file__).parent
NOT_OF_PAPERS = ("cli", "data", "evaluate")  # drawing and layout
LONG = 3  # operators from which on an expression is a formula


KEPT = {"alpha", "sigma", "logsnr", "sqrt", "exp", "log"}  # what the papers name is named alike here


def shape(node: ast.expr) -> str:
    """An expression without what a copy would change: where a value is kept, its index, keywords' order.

    Beside the scales of the diffusion, other names are numbered as they come: x0 is clean in one place and
    pictures in another.
    """
    plain = ast.parse(ast.unparse(node), mode="eval")
    for part in ast.walk(plain):
        for field, value in ast.iter_fields(part):
            while isinstance(value, ast.Subscript):
                value = value.value
            if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
                value = ast.Name(value.attr, ast.Load())  # self.scale, torch.log: scale, log
            if isinstance(value, ast.expr):
                setattr(part, field, value)
    names = [part for part in ast.walk(plain) if isinstance(part, ast.Name)]
    if any(name.id in ("alpha", "sigma") for name in names):
        numbers: dict[str, str] = {}
        for name in names:
            if name.id not in KEPT:
                name.id = numbers.setdefault(name.id, f"value_{len(numbers)}")
    return ast.unparse(plain)


def formulas(tree: ast.AST, inside: bool = False) -> Iterator[str]:
    """The arithmetic of a module, largest expressions only."""
    for node in ast.iter_child_nodes(tree):
        arithmetic = isinstance(node, ast.BinOp)
        if arithmetic and not inside:
            operators = sum(isinstance(part, ast.BinOp) for part in ast.walk(node))
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            text = any(
                isinstance(part, ast.JoinedStr | ast.Constant)
                and isinstance(getattr(part, "value", None), str)
                for part in ast.walk(node)
            )
            if operators >= LONG and len(names) >= 2 and not text:
                yield shape(node)
        yield from formulas(node, arithmetic)


def test_no_formula_is_written_twice() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    files = (
        file for file in sorted(ROOT.rglob("*.py")) if file.relative_to(ROOT).parts[0] not in NOT_OF_PAPERS
    )
    for file in files:
        for formula in formulas(ast.parse(file.read_text(encoding="utf-8"))):
            found[formula].append(str(file.relative_to(ROOT)))
    assert len(found) > 15, "the search finds formulas at all"
    assert {formula: files for formula, files in found.items() if len(files) > 1} == {}
