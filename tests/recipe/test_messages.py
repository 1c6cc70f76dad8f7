"""Wrong recipes and what is said about each, to the letter."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from mdmkit.plugins import Registry
from mdmkit.recipe import RecipeError, loads
from tests.recipe.stand_ins import FULL, MINIMAL


class Case(NamedTuple):
    """Edits of FULL, overrides, and the lines that they bring."""

    edits: list[tuple[str, str]]
    sets: list[str]
    lines: list[str]


def read_cases() -> list[Case]:
    blocks = Path(__file__).with_name("wrong_recipes.txt").read_text(encoding="utf-8").split("\n\n")
    cases = []
    for block in blocks:
        case = Case([], [], [])
        for line in block.strip("\n").split("\n"):
            if line.startswith("recipe.toml"):
                case.lines.append(line)
            elif line.startswith("--set "):
                case.sets.append(line.removeprefix("--set "))
            elif not line.startswith("#"):
                old, _, new = line.replace("\\n", "\n").partition(" => ")
                case.edits.append((old, new))
        cases += [case] if case.lines else []
    return cases


CASES = read_cases()


def problems(text: str, sets: list[str], registry: Registry) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        loads(text, sets, registry)
    return str(caught.value).splitlines()


def edited(edits: list[tuple[str, str]]) -> str:
    text = FULL
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: str(case.edits[-1][1] if case.edits else case.sets[-1])
)
def test_wrong_recipe(case: Case, registry: Registry) -> None:
    assert problems(edited(case.edits), case.sets, registry) == case.lines


def test_the_table_is_read_whole() -> None:
    assert len(CASES) >= 80


def test_all_problems_come_at_once_sorted_by_line(registry: Registry) -> None:
    text = edited(
        [
            ("seed = 3", "sead = 3"),
            ("width = 512", "width = 0"),
            ('"cosine"', '"cosin"'),
            ("steps = 25", "steps = 0"),
        ]
    )
    found = problems(text, ["train.keep=0"], registry)
    assert [line.partition(": ")[2].partition(":")[0] for line in found] == [
        "train.keep", "run.sead", "text.width", "diffusion.schedule.use", "sample.steps"
    ]  # fmt: skip


def test_cross_checks_run_where_their_tables_are_in_order(registry: Registry) -> None:
    text = edited([("seed = 3", "sead = 3"), ("resolution = 128", "resolution = 96")])
    assert [line.split(": ")[1] for line in problems(text, [], registry)] == [
        "run.sead",
        "model.levels[1].resolution",
    ]


def test_minimal_is_right(registry: Registry) -> None:
    loads(MINIMAL, registry=registry)
    loads(FULL, registry=registry)
    loads(FULL.replace('"/data', '"pipe:cat /data'), registry=registry, allow_pipe=True)
