"""Every shipped recipe passes `check --build`, on the meta device and without downloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdmkit.cli import main
from mdmkit.plugins import load_registry

RECIPES = load_registry(env={"MDMKIT_PLUGINS": ""}).recipes


@pytest.mark.parametrize("path", [pytest.param(path, id=name) for name, path in RECIPES.items()])
def test_check_build(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDMKIT_PLUGINS", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = main(["check", str(path), "--build"])
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    assert captured.out.startswith(f"{path}: ok\n")
    assert "core" in captured.out
