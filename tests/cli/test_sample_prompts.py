"""`mdmkit sample` with weights in prompts, and with prompts for parts of a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_sample_edit import files, pixels, run
from tests.train import tiny

__all__ = ["files", "run"]  # fixtures

CFG = ("--set", 'sample.guidance=[{use="cfg", scale=3.0}]')


def sampled(run: Path, out: Path, *given: str | Path) -> list[np.ndarray]:
    done = tiny.here("sample", run, *given, "--out", out)
    assert done.code == 0, done.err
    return [pixels(path) for path in sorted(out.glob("picture-*.png"))]


def refused(run: Path, out: Path, *given: str | Path) -> str:
    done = tiny.here("sample", run, *given, "--out", out)
    assert done.code == 2
    assert not out.exists()
    assert done.err.count("\n") == 1
    return done.err.strip()


def test_weights_are_read_where_they_are_asked_for(run: Path, tmp_path: Path) -> None:
    def one(prompt: str, *more: str) -> np.ndarray:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        (picture,) = sampled(run, out, "--prompt", prompt, *CFG, *more)
        return picture

    plain = one("a red ring")
    assert np.array_equal(one("a red ring", "--weighted-prompts"), plain)
    assert np.array_equal(one("(a red ring:1.0)", "--weighted-prompts"), plain)
    assert (one("a (red:3) ring", "--weighted-prompts") != plain).any()
    # parentheses of ordinary prompts are letters, and so are those behind a backslash
    assert np.array_equal(one(r"a \(red:3\) ring", "--weighted-prompts"), one("a (red:3) ring"))


def test_weights_on_the_way_and_in_the_negative_prompt(run: Path, tmp_path: Path) -> None:
    way = ("--prompt", "a (red:2) ring", "--to-prompt", "a (blue:0.5) star", "--count", "2")
    first, last = sampled(run, tmp_path / "way", *way, "--weighted-prompts")
    ends = [
        sampled(run, tmp_path / f"end{i}", "--prompt", prompt, "--weighted-prompts")[0]
        for i, prompt in enumerate(["a (red:2) ring", "a (blue:0.5) star"])
    ]
    assert abs(first - ends[0]).max() <= 1
    assert abs(last - ends[1]).max() <= 1
    given = ("--prompt", "a", "--weighted-prompts", *CFG, "--negative-prompt")
    away = [
        sampled(run, tmp_path / f"n{i}", *given, n)[0]
        for i, n in enumerate(["blue", "(blue:1)", "(blue:4)"])
    ]
    assert np.array_equal(away[0], away[1])
    assert (away[0] != away[2]).any()


def test_what_cannot_be_read_is_refused_before_a_model_is_loaded(run: Path, tmp_path: Path) -> None:
    said = refused(run, tmp_path / "a", "--prompt", "a (red ring", "--weighted-prompts")
    assert said == (
        "sample --weighted-prompts: prompt 'a (red ring': the parenthesis at character 3 is not closed; "
        r"write \( for the character"
    )
    negative = ("--prompt", "a", "--negative-prompt", "(b)", "--weighted-prompts", *CFG)
    said = refused(run, tmp_path / "a", *negative)
    assert "prompt '(b)': the parenthesis at character 1 has no weight" in said


def test_a_region_that_is_all_is_its_prompt(run: Path, files: Path, tmp_path: Path) -> None:
    base, region = (
        sampled(run, tmp_path / str(i), "--prompt", prompt, "--count", "2", *CFG)
        for i, prompt in enumerate(["a red ring", "a blue star"])
    )
    given = ("--prompt", "a red ring", "--count", "2", *CFG)
    whole = sampled(run, tmp_path / "all", *given, "--region", f"{files / 'all.png'}=a blue star")
    half = sampled(run, tmp_path / "half", *given, "--region", f"{files / 'left.png'}=a blue star")
    for i in range(2):
        assert abs(whole[i] - region[i]).max() <= 1
        assert (half[i] != base[i]).any()
        assert (half[i] != region[i]).any()
    (low, _) = sampled(
        run, tmp_path / "low", *given, "--region", f"{files / 'all.png'}=a blue star", "--levels", "1"
    )
    assert low.shape == (8, 8, 3)


def test_all_of_it_together_with_a_weaker_model(run: Path, files: Path, tmp_path: Path) -> None:
    """A weak model that is the strong one says the same, text, weights, regions and all: nothing changes."""
    region = ("--region", f"{files / 'left.png'}=a (blue:2) star")
    given = ("--prompt", "a (red:0.5) ring", *region, "--weighted-prompts")
    plain = sampled(run, tmp_path / "plain", *given, *CFG)
    auto = f'sample.guidance=[{{use="cfg", scale=3.0}}, {{use="auto", weak="{run}", scale=4.0}}]'
    led = sampled(run, tmp_path / "led", *given, "--set", auto)
    assert abs(plain[0] - led[0]).max() <= 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--region", "narrow.png=a"), "narrow.png: expected a mask of the model's size, 16x16, got 16x8; "),
        (("--region", "left.png"), "expected MASK=PROMPT, as left.png='a red ring', got 'left.png'"),
        (("--region", "text.png=a"), "sample --region: text.png: cannot be read as a picture"),
        (("--region", "left.png=a", "--canvas", "16x32"), "does not go with --canvas; leave one out"),
        (
            ("--region", "left.png=a", "--to-prompt", "b", "--count", "2"),
            "sample --region: does not go with --to-prompt; leave one out",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    run: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(files)
    assert said in refused(run, tmp_path / "out", "--prompt", "a", *given)
