"""Which line of a TOML file says what: tomli reads values but keeps no positions.

The scanner trusts the text: tomli has read it before, so it is valid TOML.
"""

from __future__ import annotations

import re

from .problems import Path

__all__ = ["scan"]

BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
SPACE = re.compile(r"[ \t]*")
KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'""")
SCALAR = re.compile(r"[^,\]}\n#]*")
# the longest first: three quotes open a multi-line string; it may end in up to two more quotes of its own
STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"(?!")|""(?!"))?'
    r"|'''.*?'''(?:'(?!')|''(?!'))?"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)


def scan(text: str) -> dict[Path, int]:
    """The line, from 1, on which each table, key and list entry first stands."""
    return Scanner(text).run()


class Scanner:
    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.counts: dict[Path, int] = {}  # tables so far in each array of tables
        self.line_at, self.line = 0, 1

    def run(self) -> dict[Path, int]:
        table: Path = ()
        while self.skip(BLANK).at < len(self.text):
            if self.text.startswith("[[", self.at):
                self.at += 2
                table = self.append_table(self.keys())
                self.at += 2
            elif self.text[self.at] == "[":
                self.at += 1
                table = self.note((), self.keys())
                self.at += 1
            else:
                self.pair(table)
        return self.lines

    def skip(self, pattern: re.Pattern[str]) -> Scanner:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self

    def here(self) -> int:
        """The line of the place that the scanner has reached."""
        self.line += self.text.count("\n", self.line_at, self.at)
        self.line_at = self.at
        return self.line

    def keys(self) -> list[str]:
        """A dotted key, up to what follows it."""
        keys = []
        while True:
            match = KEY.match(self.text, self.skip(SPACE).at)
            assert match, f"no key at {self.text[self.at : self.at + 20]!r}"
            keys.append(unquote(match[0]))
            self.at = match.end()
            if self.skip(SPACE).text[self.at : self.at + 1] != ".":
                return keys
            self.at += 1

    def note(self, path: Path, keys: list[str]) -> Path:
        """Go down the keys from `path`, into the last table of an array of tables; note each step's line."""
        for key in keys:
            path = (*path, key)
            self.lines.setdefault(path, self.here())
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
        return path

    def append_table(self, keys: list[str]) -> Path:
        path = (*self.note((), keys[:-1]), keys[-1])
        self.lines.setdefault(path, self.here())
        self.counts[path] = self.counts.get(path, 0) + 1
        path = (*path, self.counts[path] - 1)
        self.lines[path] = self.here()
        return path

    def pair(self, table: Path) -> None:
        path = self.note(table, self.keys())
        self.at += 1  # the equals sign
        self.value(path)

    def value(self, path: Path) -> None:
        first = self.text[self.skip(SPACE).at]
        if first in "\"'":
            self.skip(STRING)
        elif first == "[":
            self.at += 1
            index = 0
            while self.text[self.skip(BLANK).at] != "]":
                self.lines.setdefault((*path, index), self.here())
                self.value((*path, index))
                index += 1
                self.comma()
            self.at += 1
        elif first == "{":
            self.at += 1
            while self.text[self.skip(BLANK).at] != "}":
                self.pair(path)
                self.comma()
            self.at += 1
        else:
            self.skip(SCALAR)

    def comma(self) -> None:
        if self.text[self.skip(BLANK).at] == ",":
            self.at += 1


def unquote(key: str) -> str:
    """A key as tomli reads it: quotes taken off, escapes resolved."""
    if key[0] == "'":
        return key[1:-1]
    if key[0] != '"':
        return key
    if "\\" not in key:
        return key[1:-1]
    import tomli

    return next(iter(tomli.loads(f"{key} = 0")))
