"""The command line in this process, with stand-ins for mdmkit's own components."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from mdmkit.cli import main, options
from tests.recipe import stand_ins


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Answer]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_plugins: None) -> Cli:
    """cli("check", "recipe.toml"): the exit code and what was printed."""
    monkeypatch.setattr(
        options, "load_registry", lambda plugins=(): stand_ins.registry(extra_modules=tuple(plugins))
    )

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call
