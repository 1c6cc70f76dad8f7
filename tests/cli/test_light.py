"""Reading verbs stay light: no torch, and nothing else that takes long to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mdmkit.cli.verbs import verbs

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "transformers", "torchvision", "webdataset", "matplotlib", "PIL", "tensorboard")
RECIPE = "recipes/quickstart.toml"


def heavy_after(code: str) -> list[str]:
    """The heavy modules that are there after running code in a fresh Python; the code must not fail."""
    code += f"\nimport sys\nprint('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.rpartition("HEAVY")[2].split()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["list", "--json"],
        ["list", "noise_schedule", "weighting", "time_sampler", "sampler", "guidance"],
        ["plugins"],
        ["schema"],
        ["explain", "optimizer/adamw"],
        ["check", RECIPE],
        ["show", RECIPE],
        ["explain", f"{RECIPE}:run.seed"],
        *([verb, "--help"] for verb in verbs()),
    ],
    ids=" ".join,
)
def test_reading_verbs_import_nothing_heavy(arguments: list[str]) -> None:
    assert heavy_after(f"from mdmkit.cli import main\nassert main({arguments!r}) == 0") == []


@pytest.mark.parametrize(
    "module", ["mdmkit", "mdmkit.cli", "mdmkit.plugins", "mdmkit.recipe", "mdmkit.builtin", "mdmkit.assemble"]
)
def test_importing_imports_nothing_heavy(module: str) -> None:
    assert heavy_after(f"import {module}") == []


def test_components_import_only_torch() -> None:
    values = ["schedules", "targets", "weighting", "times", "pyramid", "resolutions", "diffusion"]
    values += ["growth", "stages"]
    rooms = [*values, "streams", "nn", "text", "data", "sampling"]
    rooms += ["train.loop", "train.state", "evaluate.report"]
    heavy = heavy_after("\n".join(f"import mdmkit.{room}" for room in rooms))
    # what only some components need comes when they are used
    assert set(heavy) - {"torch", "numpy", "PIL"} == set()


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mdmkit", "explain", "optimizer/nothing"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("unknown optimizer 'nothing'")


def test_a_closed_pipe_is_quiet() -> None:
    shell = f"{sys.executable} -m mdmkit list --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (1, "")
