"""As a stranger installs it: found by its entry point, conforming, and in use by its recipe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mdmkit_cauchy.plugin import CauchySettings

from mdmkit.testing import check_component


def mdmkit(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mdmkit", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("settings", [CauchySettings(), CauchySettings(mean=-1.0, scale=0.3)])
def test_the_schedule_conforms(settings: CauchySettings) -> None:
    check_component("noise_schedule/cauchy.cauchy", settings=settings)


def test_the_command_line_lists_the_schedule_and_the_recipe(tmp_path: Path) -> None:
    listed = json.loads(mdmkit("list", "noise_schedule", "--json", folder=tmp_path).stdout)
    assert any(row["name"] == "cauchy.cauchy" and "mdmkit-cauchy" in row["owner"] for row in listed)
    recipes = json.loads(mdmkit("list", "recipe", "--json", folder=tmp_path).stdout)
    assert "cauchy:tiny" in [row["name"] for row in recipes]


def test_the_recipe_checks_and_builds(tmp_path: Path) -> None:
    done = mdmkit("check", "cauchy:tiny", "--build", folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_resolved_recipe_pins_the_schedule(tmp_path: Path) -> None:
    shown = mdmkit("show", "cauchy:tiny", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert '"cauchy.cauchy@1"' in shown.stdout


def test_a_few_steps_train_on_the_recipe(tmp_path: Path) -> None:
    overrides = ["--set", "train.steps=3", "--set", "train.log_every=1", "--set", "train.loggers=[]"]
    done = mdmkit("run", "cauchy:tiny", *overrides, "--out", "run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3
    assert all(isinstance(loss, float) and loss > 0 for loss in losses)
