"""Clips as files: every frame comes back, in its order, at its time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from mdmkit.errors import MdmkitError
from mdmkit.evaluate.clips import (
    clip_bytes,
    contact_sheet,
    save_clip,
    save_contact_sheet,
    save_frames,
    save_gif,
    save_mp4,
)


def steps(frames: int, height: int = 16, width: int = 24) -> np.ndarray:
    """A clip in which each frame has a tone of its own."""
    tones = np.linspace(20, 235, frames).round().astype(np.uint8)
    return np.broadcast_to(tones[:, None, None, None], (frames, height, width, 3)).copy()


def as_drawn(clip: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(clip).movedim(-1, 0).float() / 127.5 - 1


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_drawn_clips_and_bytes_are_the_same(frames, height, width, seed):
    clip = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)
    assert np.array_equal(clip_bytes(as_drawn(clip)), clip)
    assert np.array_equal(clip_bytes(torch.from_numpy(clip)), clip)
    assert clip_bytes(clip) is clip


@pytest.mark.parametrize(
    "clip",
    [torch.zeros(1, 3, 4, 4), torch.zeros(3, 4, 4), np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8)],
)
def test_what_is_no_clip(clip):
    with pytest.raises(ValueError, match=r"expected a clip \(3, F, H, W\) in \[-1, 1\] or uint8"):
        clip_bytes(clip)


def test_no_frames():
    with pytest.raises(ValueError, match="at least one frame"):
        clip_bytes(np.zeros((0, 4, 4, 3), np.uint8))


@pytest.mark.parametrize("size", [(16, 24), (15, 17), (2, 2)])
def test_an_mp4_holds_the_frames_in_order(tmp_path: Path, size):
    av = pytest.importorskip("av")
    clip = steps(6, *size)
    path = save_mp4(tmp_path / "deep" / "clip.mp4", as_drawn(clip), fps=7.5)
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == 7.5
        assert (stream.height, stream.width) == tuple(side + side % 2 for side in size)
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
    assert [time for time, _ in frames] == pytest.approx([i / 7.5 for i in range(6)], abs=1e-3)
    for (_, frame), original in zip(frames, clip, strict=True):
        assert np.abs(frame[: size[0], : size[1]].astype(int) - original).max() <= 4
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["clip.mp4"]


def test_a_gif_holds_the_frames_in_order(tmp_path: Path):
    clip = steps(5)
    clip[:, :, :4] = (200, 30, 40)
    path = save_gif(tmp_path / "clip.gif", clip, fps=8)
    with Image.open(path) as picture:
        assert picture.info["loop"] == 0
        frames = [(f.info["duration"], np.array(f.convert("RGB"))) for f in ImageSequence.Iterator(picture)]
    assert [lasts for lasts, _ in frames] == [120] * 5
    for (_, frame), original in zip(frames, clip, strict=True):
        assert np.abs(frame.astype(int) - original).max() <= 2


def test_frames_are_pixel_for_pixel(tmp_path: Path):
    clip = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
    folder = save_frames(tmp_path / "clip", clip)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["0000.png", "0001.png", "0002.png"]
    for name, frame in zip(names, clip, strict=True):
        assert np.array_equal(np.array(Image.open(folder / name)), frame)
    save_frames(folder, clip)  # again
    with pytest.raises(MdmkitError, match=r"0002\.png: is there already, of a longer clip"):
        save_frames(folder, clip[:2])


def test_a_format_by_its_name(tmp_path: Path):
    clip = steps(3)
    pytest.importorskip("av")
    made = [
        save_clip(tmp_path / "a.b", clip, fps=4, format=format, scale=2) for format in ("mp4", "gif", "png")
    ]
    assert [path.name for path in made] == ["a.b.mp4", "a.b.gif", "a.b"]
    with Image.open(made[1]) as picture:
        assert picture.size == (48, 32)
    for wrong, message in (
        ({"format": "avi"}, "expected a clip format of mp4, gif, png, came 'avi'"),
        ({"format": "gif", "fps": 0}, "expected fps between"),
        ({"format": "gif", "scale": 0}, "expected scale >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            save_clip(tmp_path / "x", clip, **{"fps": 4.0, **wrong})


def test_without_pyav_a_line_says_what_to_install(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MdmkitError, match=r"pip install 'mdmkit\[video\]', or take gif"):
        save_mp4(tmp_path / "x.mp4", steps(2), fps=4)


def tones(sheet: Image.Image, clip: np.ndarray) -> list[int]:
    """The tones of a clip that a sheet shows, from left to right along the first row."""
    row = np.array(sheet)[40, :, 0]
    changes = row[np.insert(np.diff(row.astype(int)) != 0, 0, True)]
    return [int(tone) for tone in changes if tone in clip]


def test_a_sheet_shows_frames_from_left_to_right():
    clip = steps(7)
    sheet = contact_sheet([clip, clip[::-1].copy()], ["up", "down"])
    assert tones(sheet, clip[1:-1]) == clip[1:-1, 0, 0, 0].tolist()
    few = contact_sheet([as_drawn(clip)], ["up"], most=3)
    assert tones(few, clip[1:-1]) == [int(clip[3, 0, 0, 0])]
    assert few.height < sheet.height
    titled = contact_sheet([clip], ["up"], title="a title")
    assert titled.height > contact_sheet([clip], ["up"]).height


def test_sheets_of_clips_of_several_sizes(tmp_path: Path):
    path = save_contact_sheet(tmp_path / "s.png", [steps(2), steps(9, 40, 8)], ["a", "b" * 400])
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    for clips, captions in (([], []), ([steps(1)], [])):
        with pytest.raises(ValueError, match="expected clips with a caption each"):
            contact_sheet(clips, captions)
    with pytest.raises(ValueError, match="most >= 1"):
        contact_sheet([steps(1)], [""], most=0)
