"""`mdmkit new`: what it writes is whole, and it never writes over anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mdmkit.cli import main
from mdmkit.plugins import load_registry

ROOT = Path(__file__).parents[2]
SHIPPED = load_registry(env={"MDMKIT_PLUGINS": ""}).recipes


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_recipe_is_copied_to_the_letter(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    stem = name.removeprefix("mdmkit:")
    assert main(["new", "recipe", stem]) == 0
    assert capsys.readouterr().out == f"{stem}.toml\n"
    assert Path(f"{stem}.toml").read_bytes() == SHIPPED[name].read_bytes()


def test_a_recipe_goes_where_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert main(["new", "recipe", "mdmkit:quickstart", "mine"]) == 0
    assert main(["new", "recipe", "quickstart.toml", "deep/own.toml"]) == 0
    assert (tmp_path / "mine" / "quickstart.toml").read_bytes() == Path("deep/own.toml").read_bytes()


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("quickstart.toml").write_text("mine")
    assert main(["new", "recipe", "quickstart"]) == 2
    assert capsys.readouterr().err == "quickstart.toml: exists already; choose another place\n"
    assert Path("quickstart.toml").read_text() == "mine"
    Path("mdmkit-acme").mkdir()
    Path("mdmkit-acme/notes.txt").write_text("mine")
    assert main(["new", "plugin", "acme"]) == 2
    assert capsys.readouterr().err == "mdmkit-acme: exists and is not an empty folder; choose another\n"
    assert [path.name for path in Path("mdmkit-acme").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recipe", "quikstart"), "unknown recipe 'quikstart'; did you mean 'quickstart'?"),
        (("plugin", "Acme"), "expected a plugin name of a-z, 0-9 and _ that starts with a letter, got"),
        (("plugin", "mdmkit"), "plugin name 'mdmkit' is taken by mdmkit"),
        (("plugins", "acme"), "unknown thing to make 'plugins'; did you mean 'plugin'?"),
    ],
)
def test_what_cannot_be_made_is_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["new", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_new_plugin_passes_its_own_tests(tmp_path: Path) -> None:
    assert main(["new", "plugin", "acme_two"]) == 0
    folder = tmp_path / "mdmkit-acme-two"
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written == {
        "pyproject.toml",
        "README.md",
        "src/mdmkit_acme_two/__init__.py",
        "src/mdmkit_acme_two/plugin.py",
        "src/mdmkit_acme_two/schedule.py",
        "tests/test_conformance.py",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
