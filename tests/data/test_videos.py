"""Clips out of encoded videos: the frames that a player would show, and no more decoded than they need."""

from __future__ import annotations

import io
import os
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("av")

from mdmkit.data.pictures import fit
from mdmkit.data.videos import Cut, Part, read_clip
from mdmkit.errors import MdmkitError

from filming import encode, number_of, numbers_of, pattern  # isort: skip

SIZE = (24, 32)
VIDEO = encode()  # 30 frames, 10 a second, a key frame every 10


def read(data: bytes, cut: Cut, **settings):
    return read_clip(io.BytesIO(data), settings.pop("resolution", SIZE), cut, **settings)


def first(frames: int, fps: float | None = None, **settings) -> Cut:
    return Cut(frames, fps, "first", **settings)


@pytest.mark.parametrize(
    ("codec", "container", "pixels"),
    [
        ("libx264", "mp4", "yuv420p"),
        ("libx264", "matroska", "yuv420p"),
        ("mpeg4", "mp4", "yuv420p"),
        ("mpeg4", "avi", "yuv420p"),
        ("libvpx", "webm", "yuv420p"),
        ("libvpx-vp9", "webm", "yuv420p"),
        ("mjpeg", "mov", "yuvj420p"),
    ],
)
def test_the_right_frames_come_out_of_every_codec(codec, container, pixels):
    import av

    if codec not in av.codecs_available:
        pytest.skip(f"PyAV has no {codec}")
    data = encode(codec=codec, container=container, pixels=pixels)
    for cut, expected in (
        (first(4), [0, 1, 2, 3]),
        (Cut(4, None, "center"), [13, 14, 15, 16]),
        (first(6, 5.0), [0, 2, 4, 6, 8, 10]),
        (first(4, 20.0), [0, 0, 1, 1]),
        (first(30), list(range(30))),
    ):
        clip = read(data, cut)
        assert clip.image.shape == (len(expected), *SIZE, 3)
        assert clip.image.dtype == np.uint8
        assert numbers_of(clip.image) == expected
        assert (clip.size, clip.fps) == ((48, 64), cut.fps or 10.0)


@given(st.integers(1, 30), st.sampled_from([None, 2.5, 5.0, 7.0, 10.0, 30.0]), st.integers(0, 999))
def test_frames_are_those_of_their_times(frames, fps, seed):
    cut = Cut(frames, fps)
    if (frames - 1) / (fps or 10) > 2.9:
        with pytest.raises(ValueError, match=r"it lasts 3.00 s, but \d+ frames at .* need"):
            read(VIDEO, cut, key=(seed,))
        return
    clip = read(VIDEO, cut, key=(seed,))
    times = cut.times(3.0, 10.0, (seed,))
    assert numbers_of(clip.image) == [int(time * 10 + 0.1) for time in times]
    assert np.allclose(np.diff(times), 1 / (fps or 10))
    assert times[0] >= -1e-9
    assert times[-1] <= 2.9 + 1e-9
    # from the key frame before the first to the last, and what B-frames hold back
    first_frame, last_frame = (int(time * 10 + 0.1) for time in (times[0], times[-1]))
    assert clip.decoded == last_frame - first_frame // 10 * 10 + 1


def test_no_more_frames_are_decoded_than_are_needed():
    assert read(VIDEO, first(4)).decoded == 4
    assert read(VIDEO, first(3, 5.0)).decoded == 5
    long = encode(60, keys=5)
    clip = read(long, Cut(2, None, "center"))
    assert numbers_of(clip.image) == [29, 30]
    assert clip.decoded == 6  # 25 to 30


def test_no_more_is_made_than_is_shown(monkeypatch):
    made = []
    monkeypatch.setattr("mdmkit.data.videos.fit", lambda *a, **k: made.append(1) or fit(*a, **k))
    assert len(read(VIDEO, first(8, 40.0)).image) == 8  # each frame four times
    assert len(made) == 2


def test_starts_are_drawn_by_their_key_and_spread():
    starts = [number_of(read(VIDEO, Cut(2), key=(0, i)).image[0]) for i in range(40)]
    assert starts == [number_of(read(VIDEO, Cut(2), key=(0, i)).image[0]) for i in range(40)]
    assert min(starts) < 4
    assert max(starts) > 24
    assert len(set(starts)) > 15


@pytest.mark.parametrize(("codec", "container"), [("libx264", "mp4"), ("libvpx", "webm")])
def test_variable_frame_rates(codec, container):
    # frames 0 to 9 stand 40 ms, 10 to 14 stand 200 ms, 15 to 24 stand 40 ms
    times = [*np.arange(10) * 0.04, *(0.4 + np.arange(5) * 0.2), *(1.4 + np.arange(10) * 0.04)]
    data = encode(25, codec=codec, container=container, rate=25, times=times)
    clip = read(data, first(17, 10.0))
    shown = [int(np.searchsorted(times, t + 1e-6, side="right")) - 1 for t in np.arange(17) / 10]
    assert numbers_of(clip.image) == shown
    assert shown[4:14] == [10, 10, 11, 11, 12, 12, 13, 13, 14, 14]


@pytest.mark.parametrize("size", [(49, 65), (48, 64), (37, 101), (120, 40)])
def test_odd_sizes(size):
    data = encode(6, size=size, pixels="yuv444p")
    clip = read(data, first(6), resolution=size)
    assert numbers_of(clip.image) == list(range(6))
    assert clip.size == size


@pytest.mark.parametrize("resolution", [(16, 16), (9, 40), (48, 64), (96, 96)])
def test_crop_and_size_are_those_of_pictures(resolution):
    from PIL import Image

    clip = read(encode(2, numbers=[21, 42]), first(2), resolution=resolution)
    for frame, number in zip(clip.image, (21, 42), strict=True):
        expected = fit(Image.fromarray(pattern(number)), resolution).astype(int)
        assert np.abs(frame - expected).mean() < 5


def test_large_frames_are_made_small_first_and_alike():
    from PIL import Image

    big = encode(1, size=(480, 640), numbers=[45])
    frame = read(big, first(1), resolution=(24, 32)).image[0].astype(int)
    assert np.abs(frame - fit(Image.fromarray(pattern(45, 480, 640)), (24, 32))).mean() < 4


def test_all_frames_of_a_clip_have_one_crop_and_one_mirror():
    data = encode(5, numbers=[9] * 5, size=(48, 96))
    cropped = [
        read(data, first(5), resolution=(16, 16), crop="random", flip=True, key=(0, i)).image.astype(int)
        for i in range(6)
    ]
    for clip in cropped:
        assert np.abs(clip - clip[:1]).mean() < 3
    assert len({clip[0].round(-1).tobytes() for clip in cropped}) > 2


def turned(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An mp4 whose header says how it is to be turned, as phones write it."""
    at = data.index(b"tkhd") + 44
    a, b, c, d = (65536 * m for m in matrix)
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


@pytest.mark.parametrize(
    ("matrix", "quarters"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)]
)
def test_videos_of_turned_phones_stand_upright(matrix, quarters):
    clip = read(turned(encode(3, numbers=[11, 26, 37]), matrix), first(3), resolution=(48, 48))
    assert clip.size == ((64, 48) if quarters % 2 else (48, 64))
    from PIL import Image

    for frame, number in zip(clip.image, (11, 26, 37), strict=True):
        expected = fit(Image.fromarray(np.rot90(pattern(number), quarters).copy()), (48, 48)).astype(int)
        assert np.abs(frame - expected).mean() < 5


def test_pixels_that_are_not_square():
    clip = read(encode(2, aspect=Fraction(2, 1)), first(2), resolution=(48, 128))
    assert clip.size == (48, 128)
    assert numbers_of(clip.image) == [0, 1]


def test_short_videos_are_refused_or_held():
    short = encode(3)
    with pytest.raises(ValueError, match=r"it lasts 0.30 s, but 5 frames at 10 a second need 0.50 s; lower"):
        read(short, first(5))
    assert numbers_of(read(short, first(5, short="hold")).image) == [0, 1, 2, 2, 2]
    assert numbers_of(read(short, Cut(5, short="hold"), key=(3,)).image) == [0, 1, 2, 2, 2]
    assert numbers_of(read(short, first(3, short="hold")).image) == [0, 1, 2]


@pytest.mark.parametrize("kept", [0, 10, 700, len(VIDEO) // 2])
def test_truncated_files_are_refused(kept):
    with pytest.raises((ValueError, OSError)):
        read(VIDEO[:kept], first(4))


def test_a_truncated_webm_gives_what_it_still_has():
    data = encode(codec="libvpx", container="webm")
    half = data[: len(data) // 2]
    assert numbers_of(read(half, first(4)).image) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"its frames end at \d\.\d\d s, there is none for \d\.\d\d s"):
        read(half, first(30))


@pytest.mark.parametrize("seed", range(8))
def test_damaged_files_never_give_wrong_frames(seed):
    damaged, draws = bytearray(VIDEO), np.random.default_rng(seed)
    begin, end = VIDEO.index(b"mdat") + 8, VIDEO.index(b"moov") - 8
    for _ in range(6):
        damaged[draws.integers(begin, end)] = draws.integers(256)
    try:
        clip = read(bytes(damaged), first(30))
    except (ValueError, OSError):
        return
    assert numbers_of(clip.image) == list(range(30))


def test_files_without_video():
    with pytest.raises((ValueError, OSError), match="Invalid data"):
        read(b"no video at all" * 50, first(1))


def test_a_part_of_a_file_is_a_file(tmp_path: Path):
    whole = tmp_path / "whole"
    whole.write_bytes(b"x" * 1001 + VIDEO + b"y" * 777)
    file = os.open(whole, os.O_RDONLY)
    try:
        part = Part(file, 1001, len(VIDEO))
        assert part.read() == VIDEO
        assert part.read() == part.read(5) == b""
        assert part.seek(-7, 2) == len(VIDEO) - 7 == part.tell()
        assert part.read(100) == VIDEO[-7:]
        assert part.seek(3) == 3
        assert part.seek(2, 1) == 5
        assert part.read(4) == VIDEO[5:9]
        clip = read_clip(Part(file, 1001, len(VIDEO)), SIZE, Cut(3, None, "center"))
        assert numbers_of(clip.image) == [13, 14, 15]
    finally:
        os.close(file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "expected frames >= 1"),
        ({"fps": 0.0}, "fps > 0"),
        ({"start": "end"}, "expected start to be one of random, first, center, got 'end'"),
        ({"short": "loop"}, "expected short to be one of skip, hold, got 'loop'"),
    ],
)
def test_wrong_cuts(settings, message):
    with pytest.raises(ValueError, match=message):
        Cut(**{"frames": 4, **settings})


def test_without_pyav_a_line_says_what_to_install(monkeypatch):
    from mdmkit.data.clips import VideoFolder

    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MdmkitError, match=r"reading videos needs PyAV .*; pip install 'mdmkit\[video\]'"):
        VideoFolder(seed=0, resolution=8, path=".")
