"""All frames of what a path names, each once and in order, whatever it is kept as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdmkit.data.frames import read_frames
from mdmkit.data.pictures import fit
from mdmkit.errors import MdmkitError
from mdmkit.evaluate.clips import save_clip

from filming import encode, numbers_of, pattern  # isort: skip

CLIP = np.random.default_rng(0).integers(0, 256, (5, 12, 16, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("codec", "container", "suffix"),
    [
        ("libx264", "mp4", "mp4"),
        ("libx264", "matroska", "mkv"),
        ("mpeg4", "avi", "avi"),
        ("libvpx-vp9", "webm", "webm"),
    ],
)
def test_every_frame_of_a_video_comes_once(codec: str, container: str, suffix: str, tmp_path: Path):
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV has no {codec}")
    path = tmp_path / f"video.{suffix}"
    data = encode(codec=codec, container=container)
    path.write_bytes(data)
    frames = read_frames(path)
    assert numbers_of(frames.image) == list(range(30))
    assert (frames.size, frames.image.shape[1:3], frames.fps) == ((48, 64), (48, 64), 10)
    few = read_frames(path, (24, 24), most=4)
    assert few.image.shape == (4, 24, 24, 3)
    assert few.size == (48, 64)
    path.write_bytes(data[: len(data) * 2 // 3])
    early = r"its \d+ frames end at \d\.\d\d s, and it lasts 3\.00 s" if suffix in ("mkv", "webm") else "."
    with pytest.raises((ValueError, OSError), match=early):
        read_frames(path)
    if container != "avi":  # which has no times of its own
        path.write_bytes(encode(5, codec=codec, container=container, times=[0, 0.1, 0.15, 0.4, 0.9]))
        assert numbers_of(read_frames(path).image) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("clip", [CLIP, CLIP[[0, 1, 1, 1, 2, 2]], CLIP[[3, 4, 4, 4, 4]], CLIP[:1]])
def test_gifs_and_folders_are_read_as_they_were_written(clip: np.ndarray, tmp_path: Path):
    """GIFs among them whose writer keeps equal frames as one that lasts longer."""
    gif, folder = (save_clip(tmp_path / "clip", clip, fps=8, format=format) for format in ("gif", "png"))
    for path in (gif, folder):
        frames = read_frames(path)
        assert frames.size == (12, 16)
        assert frames.image.shape == clip.shape
        assert abs(frames.image.astype(int) - clip).max() == 0
    assert read_frames(gif).fps == (None if len(clip) == 1 else pytest.approx(1000 / 120))
    assert read_frames(folder).fps is None
    assert len(read_frames(gif, most=2).image) == len(read_frames(folder, most=2).image) == min(2, len(clip))


def test_a_picture_is_one_frame_cropped_as_pictures_are(tmp_path: Path):
    path = tmp_path / "picture.png"
    Image.fromarray(CLIP[0]).save(path)
    for resolution in (None, (8, 8)):
        frames = read_frames(path, resolution)
        wanted = fit(Image.fromarray(CLIP[0]), resolution or (12, 16))
        assert np.array_equal(frames.image, wanted[None])
        assert (frames.size, frames.fps) == ((12, 16), None)


def test_what_is_no_clip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").mkdir()
    folder = save_clip(tmp_path / "clip", CLIP, fps=8, format="png")
    with pytest.raises(ValueError, match="the folder has no pictures"):
        read_frames(tmp_path / "empty")
    Image.fromarray(pattern(0)).save(folder / "0005.png")
    with pytest.raises(ValueError, match="its frames have different sizes, 12x16 and 48x64"):
        read_frames(folder)
    (folder / "0003.png").unlink()
    with pytest.raises(ValueError, match="its frame 3 is missing"):
        read_frames(folder)
    for name in ("none.png", "none.mp4"):
        with pytest.raises((OSError, MdmkitError)):
            read_frames(tmp_path / name)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MdmkitError, match="reading videos needs PyAV"):
        read_frames(tmp_path / "none.mp4")
