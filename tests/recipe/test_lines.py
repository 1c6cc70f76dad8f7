"""The scanner's paths are tomli's, and each line is where the path stands."""

from __future__ import annotations

from typing import Any

import pytest
import tomli
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.recipe.lines import scan

TEXT = (
    """\
# a comment with = and [brackets]
title = "has # no comment"   # has one
a.b."c d" = 1
'quoted.key' = 'it"""
    + """'s'
""".replace("'s'", "s'")
    + '''
[table]   # header
x = [1, 2,
  3, # three ]
  [4, 5],
]
text = """
[not a header]
key = 'not a key' ""\\"
"""
raw = \'\'\'
[[nor this]] # \'\'\'
inline = { p = 1, q = { r = [2, { s = 3 }] } }
date = 1979-05-27T07:32:00Z

[[rows]]
name = "first"
[rows.sub]
deep = true

[[rows]]
name = "second"
[[rows.more]]
z = 1
[[rows.more]]
z = 2

["quoted table".x]
y = +1e3
'''
)


def paths(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Every path of a document, of tables and list entries too."""
    if isinstance(value, dict):
        below = [paths(item, (*path, key)) for key, item in value.items()]
    elif isinstance(value, list):
        below = [paths(item, (*path, i)) for i, item in enumerate(value)]
    else:
        below = []
    return {path, *(p for ps in below for p in ps)} - {()}


def line_of(text: str, part: str) -> int:
    return next(i for i, line in enumerate(text.splitlines(), 1) if part in line)


def test_every_form_of_toml() -> None:
    lines = scan(TEXT)
    assert set(lines) == paths(tomli.loads(TEXT))
    for path, part in {
        ("title",): "title",
        ("a", "b", "c d"): "a.b.",
        ("table",): "[table]",
        ("table", "x", 2): "3, # three",
        ("table", "x", 3, 1): "[4, 5]",
        ("table", "text"): "text = ",
        ("table", "inline", "q", "r", 1, "s"): "inline",
        ("rows",): "[[rows]]",
        ("rows", 0, "sub", "deep"): "deep",
        ("rows", 1, "name"): '"second"',
        ("rows", 1, "more", 1, "z"): "z = 2",
        ("quoted table", "x", "y"): "y = +1e3",
    }.items():
        assert lines[path] == line_of(TEXT, part), path


KEYS = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,4}", fullmatch=True),
    st.text("ab .\"'#=[]{}\\,\n\t", min_size=1, max_size=4),
)
SCALARS = st.one_of(
    st.booleans(), st.integers(-9, 99), st.floats(allow_nan=False), st.text("a#=[]{}\"'\\,\n ", max_size=6)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)
documents = st.dictionaries(KEYS, VALUES, max_size=4)


@given(documents, st.booleans(), st.booleans())
def test_paths_are_those_of_tomli(document: dict[str, Any], multiline: bool, crlf: bool) -> None:
    text = tomli_w.dumps(document, multiline_strings=multiline)
    if crlf:
        text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    lines = scan(text)
    assert set(lines) == paths(tomli.loads(text))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


@given(st.lists(st.tuples(KEYS.filter(lambda k: "\n" not in k), st.integers(0, 3)), unique_by=lambda p: p[0]))
def test_lines_are_where_keys_stand(pairs: list[tuple[str, int]]) -> None:
    text, expected = "", {}
    for key, gap in pairs:
        text += "# x = [\n" * gap
        expected[(key,)] = text.count("\n") + 1
        text += tomli_w.dumps({key: [[], {}]})
    assert {path: line for path, line in scan(text).items() if len(path) == 1} == expected


@pytest.mark.parametrize("text", ["", "\n\n# only a comment", "a=1", "[a]", "[[a]]", "a = '''x''''"])
def test_small_texts(text: str) -> None:
    assert set(scan(text)) == paths(tomli.loads(text))
