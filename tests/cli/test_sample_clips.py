"""`mdmkit sample` of a model of clips: a contact sheet a level, each clip in the format asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageSequence

from mdmkit.cli import main

RECIPE = """
format = 1
summary = "moving shapes, 1 frame of 4 pixels, 2 frames of 8"
[data]
use = "moving_shapes"
[text]
use = "bytes"
width = 16
[[model.levels]]
resolution = 4
channels = [16, 16]
blocks = 1
norm_groups = 8
heads = 2
[[model.levels]]
resolution = 8
frames = 2
channels = [8, 8]
blocks = 1
norm_groups = 8
strides = [[2, 2, 2]]
temporal = { use = "attention", head_dim = 8 }
[train]
steps = 1
batch = 2
loggers = []
[sample]
steps = 1
count = 1
guidance = []
[evaluate]
metrics = []
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    (folder / "tiny.toml").write_text(RECIPE)
    assert main(["run", str(folder / "tiny.toml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def sampled(model: Path, out: Path, *more: str) -> set[str]:
    assert main(["sample", str(model), "--prompt", "a red circle moves left", "--out", str(out), *more]) == 0
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


SHEETS = {"sheet-level-0-1x4x4.png", "sheet-level-1-2x8x8.png"}


def test_clips_come_in_the_format_that_is_asked_for(model, tmp_path):
    assert sampled(model, tmp_path / "gif") == SHEETS | {"clip-00000.gif"}
    with Image.open(tmp_path / "gif" / "clip-00000.gif") as picture:
        assert len(list(ImageSequence.Iterator(picture))) == 2
    frames = {"clip-00000/0000.png", "clip-00000/0001.png"}
    assert sampled(model, tmp_path / "png", "--clip-format", "png") == SHEETS | frames
    av = pytest.importorskip("av")
    assert sampled(model, tmp_path / "mp4", "--clip-format", "mp4") == SHEETS | {"clip-00000.mp4"}
    with av.open(tmp_path / "mp4" / "clip-00000.mp4") as container:
        assert len(list(container.decode(video=0))) == 2


def test_wrong_formats_and_mp4_without_pyav(model, tmp_path, capsys, monkeypatch):
    out = ["sample", str(model), "--prompt", "a red circle", "--out", str(tmp_path / "x")]
    assert main([*out, "--clip-format", "avi"]) == 2
    assert "sample --clip-format: expected one of mp4, gif, png, got 'avi'" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert main([*out, "--clip-format", "mp4"]) == 1
    assert "pip install 'mdmkit[video]', or take gif" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()  # before the work
