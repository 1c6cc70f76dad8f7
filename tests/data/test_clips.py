"""Datasets of clips: their order and captions are those of pictures, and broken files are passed over."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av")

from mdmkit.data import Dataset
from mdmkit.data.by_size import BySize
from mdmkit.data.clips import FramesFolder, VideoFolder, WebDatasetVideo
from mdmkit.data.loader import batches
from mdmkit.errors import MdmkitError, WrongInput

from filming import encode, number_of, numbers_of, pattern  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core

KINDS = {0: ("mp4", "libx264"), 1: ("webm", "libvpx"), 2: ("avi", "mpeg4")}


def a_video(number: int) -> tuple[str, bytes]:
    """Extension and bytes of video `number`, of 10 frames, the first showing its number."""
    extension, codec = KINDS[number % 3]
    numbers = range(number, number + 10)
    return extension, encode(10, codec=codec, container=extension, numbers=numbers, keys=4)


@pytest.fixture(scope="module")
def videos() -> dict[int, tuple[str, bytes]]:
    return {number: a_video(number) for number in range(6)}


@pytest.fixture
def folder(tmp_path: Path, videos) -> Path:
    where = tmp_path / "videos"
    (where / "deep").mkdir(parents=True)
    for number, (extension, data) in videos.items():
        inside = where / "deep" if number == 5 else where
        (inside / f"v{number}.{extension}").write_bytes(data)
        (inside / f"v{number}.txt").write_text(f"video {number}")
    return where


@pytest.fixture
def tars(tmp_path: Path, videos, write_tar) -> str:
    for shard in range(2):
        members = []
        for number in range(3 * shard, 3 * shard + 3):
            extension, data = videos[number]
            members += [
                (f"{number:03d}.{extension}", data),
                (f"{number:03d}.txt", f"video {number}".encode()),
            ]
        write_tar(tmp_path / "tars" / f"s-{shard}.tar", members)
    return str(tmp_path / "tars" / "s-{0..1}.tar")


def in_tars(urls: str, **settings) -> WebDatasetVideo:
    return WebDatasetVideo(
        **{"seed": 0, "resolution": (24, 32), "frames": 4, "start": "first", "urls": urls, **settings}
    )


def in_folder(path: Path, **settings) -> VideoFolder:
    given = {"seed": 0, "resolution": (24, 32), "frames": 4, "start": "first", "path": str(path)}
    return VideoFolder(**{**given, **settings})


def shown(dataset) -> dict[str, list[int]]:
    samples = [dataset.sample(position) for position in range(len(dataset))]
    return {sample.caption: numbers_of(sample.image) for sample in samples}


EXPECTED = {f"video {n}": list(range(n, n + 4)) for n in range(6)}


def test_videos_of_a_folder_and_of_shards_are_the_same(folder, tars):
    one, other = in_folder(folder), in_tars(tars)
    assert isinstance(one, Dataset)
    assert isinstance(other, Dataset)
    assert shown(one) == shown(other) == EXPECTED
    assert (len(one), len(other)) == (6, 6)
    assert sorted(one.captions(6)) == sorted(other.captions(6)) == sorted(EXPECTED)
    sample = other.sample(0)
    assert (sample.size, sample.fps) == ((48, 64), 10.0)
    assert re.fullmatch(r"s-[01]\.tar/00\d", sample.key)
    assert repr(one).startswith("VideoFolder(")
    assert repr(one).endswith("videos=6, captions='txt')")


def test_rates_and_pictures(folder, tars):
    for dataset in (in_folder(folder, fps=5.0, frames=3), in_tars(tars, fps=5.0, frames=3)):
        sample = dataset.sample(0)
        begin = int(sample.caption.split()[1])
        assert numbers_of(sample.image) == [begin, begin + 2, begin + 4]
        assert sample.fps == 5.0
    for dataset in (in_folder(folder, frames=None), in_tars(tars, frames=None)):
        sample = dataset.sample(0)
        assert sample.image.shape == (24, 32, 3)
        assert number_of(sample.image) == int(sample.caption.split()[1])
        assert sample.fps is None


def test_starts_depend_on_seed_and_position_alone(folder):
    one, two = in_folder(folder, start="random", frames=2), in_folder(folder, start="random", frames=2)
    two.sample(3)
    for position in (0, 5, 7, 100):
        assert np.array_equal(one.sample(position).image, two.sample(position).image)
    offsets = set()
    for position in range(40):
        sample = one.sample(position)
        offsets.add(number_of(sample.image[0]) - int(sample.caption.split()[1]))
    assert offsets > {0, 4, 8}


def test_broken_videos_are_passed_over_and_counted(folder, tars, write_tar, tmp_path, videos):
    (folder / "v0.mp4").write_bytes(videos[0][1][:600])
    (folder / "v3.mp4").write_bytes(b"")
    dataset = in_folder(folder, shuffle=False)
    samples = [dataset.sample(position) for position in range(6)]
    bad = {key for sample in samples for key, _ in sample.skipped}
    assert bad == {"v0.mp4", "v3.mp4"}
    assert all(sample.caption not in ("video 0", "video 3") for sample in samples)
    assert all(numbers_of(sample.image) == EXPECTED[sample.caption] for sample in samples)

    members = [("a.mp4", videos[0][1][:600]), ("a.txt", b"broken"), ("b.txt", b"no video"), ("b.json", b"{}")]
    members += [("c.mp4", videos[3][1]), ("c.txt", b"video 3")]
    write_tar(tmp_path / "bad.tar", members)
    dataset = in_tars(str(tmp_path / "bad.tar"), shuffle=False)
    skipped = dict(bad for position in range(3) for bad in dataset.sample(position).skipped)
    assert set(skipped) == {"bad.tar/a", "bad.tar/b"}
    assert "it has no video (it has json, txt)" in skipped["bad.tar/b"]
    assert "\n" not in "".join(skipped.values())
    with pytest.raises(MdmkitError, match="samples in a row could not be read"):
        in_tars(str(tmp_path / "bad.tar"), shuffle=False, frames=99).sample(0)


def test_clips_through_workers_that_meet_broken_files(folder, videos):
    (folder / "v4.webm").write_bytes(videos[4][1][:80])
    dataset = in_folder(folder, start="random")
    steps = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    alone, read = list(batches(dataset, steps)), list(batches(dataset, steps, workers=1))
    for a, b in zip(alone, read, strict=True):
        assert a.images.shape == (3, 3, 4, 24, 32)
        assert np.array_equal(a.images.numpy(), b.images.numpy())
        assert (a.captions, a.keys, a.skipped) == (b.captions, b.keys, b.skipped)
        assert a.fps is not None
        assert a.fps.tolist() == [10.0] * 3
    assert {key for batch in alone for key, _ in batch.skipped} == {"v4.webm"}


def test_only_what_is_needed_is_read_of_a_tar(tmp_path, write_tar, monkeypatch):
    import os

    data = encode(60, size=(480, 640), codec="mjpeg", container="mov", pixels="yuvj420p", noise=True)
    write_tar(tmp_path / "one.tar", [("a.avi", data), ("a.txt", b"long")])
    dataset = in_tars(str(tmp_path / "one.tar"), start="center", frames=2)
    pickle.loads(pickle.dumps(dataset))
    read, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda f, n, at: read.append(len(d := pread(f, n, at))) or d)
    assert numbers_of(dataset.sample(0).image) == [29, 30]
    assert sum(read) < len(data) / 4


def test_json_and_features_of_shards(tmp_path, write_tar, videos):
    from safetensors.numpy import save

    features = {"features": np.ones((3, 4), np.float32), "mask": np.array([1, 1, 0], np.uint8)}
    told = json.dumps({"caption": "from json", "original_height": 480, "original_width": 640}).encode()
    members = [("a.mp4", videos[0][1]), ("a.json", told), ("a.features.safetensors", save(features))]
    write_tar(tmp_path / "j.tar", members)
    sample = in_tars(str(tmp_path / "j.tar"), caption="json.caption", features=True).sample(0)
    assert (sample.caption, sample.size) == ("from json", (480, 640))
    assert sample.features is not None
    assert sample.features.shape == (3, 4)


def test_tables_classes_and_no_captions_for_videos(tmp_path, videos):
    root = tmp_path / "classes"
    for number, name in ((0, "cats"), (1, "dogs")):
        (root / name).mkdir(parents=True)
        extension, data = videos[number]
        (root / name / f"x.{extension}").write_bytes(data)
    assert in_folder(root).class_names() == ["cats", "dogs"]
    assert set(in_folder(root, captions="none").captions(2)) == {""}
    (root / "all.csv").write_text("file,caption\ncats/x.mp4,a cat\ndogs/x.webm,a dog\n")
    assert set(in_folder(root).captions(2)) == {"a cat", "a dog"}
    (root / "all.csv").write_text("file,caption\ncats/y.mp4,a cat\n")
    with pytest.raises(WrongInput, match=r"1 videos named in the table but not there: cats/y\.mp4"):
        in_folder(root)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WrongInput, match="found no videos \\(mp4, webm"):
        in_folder(empty)


@pytest.fixture
def stills(tmp_path: Path) -> Path:
    """Two clips of 9 frames, named with and without leading zeros, one from 0 and one from 1."""
    root = tmp_path / "stills"
    for name, begin, form in (("one", 0, "{}"), ("deep/two", 1, "shot2_{:05d}")):
        (root / name).mkdir(parents=True)
        for i in range(9):
            shot = Image.fromarray(pattern(i + 20 * begin))
            shot.save(root / name / f"{form.format(i + begin + 4)}.png")
        (root / f"{name}.txt").write_text(f"clip {name}")
    return root


def frames_of(path: Path, **settings) -> FramesFolder:
    given = {"seed": 0, "resolution": (24, 32), "frames": 4, "start": "first", "path": str(path)}
    return FramesFolder(**{**given, **settings})


def test_folders_of_frames(stills):
    dataset = frames_of(stills)
    assert isinstance(dataset, Dataset)
    assert shown(dataset) == {"clip one": [0, 1, 2, 3], "clip deep/two": [20, 21, 22, 23]}
    assert {dataset.sample(i).key for i in range(2)} == {"one", "deep/two"}
    assert dataset.sample(0).fps is None
    every = shown(frames_of(stills, frames=9))
    assert every == {"clip one": list(range(9)), "clip deep/two": list(range(20, 29))}
    slow = frames_of(stills, source_fps=12.0, fps=4.0, frames=3)
    assert shown(slow) == {"clip one": [0, 3, 6], "clip deep/two": [20, 23, 26]}
    assert slow.sample(0).fps == 4.0
    assert frames_of(stills, source_fps=12.0).sample(0).fps == 12.0
    held = shown(frames_of(stills, frames=11, short="hold"))
    assert held["clip one"] == [*range(9), 8, 8]
    assert frames_of(stills, frames=None).sample(0).image.shape == (24, 32, 3)
    table = "file,caption\none,first\ndeep/two,second\n"
    (stills / "t.csv").write_text(table)
    assert set(shown(frames_of(stills))) == {"first", "second"}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda root: (root / "one" / "7.png").unlink(), "its frame 7 is missing"),
        (lambda root: (root / "one" / "a7.png").write_bytes(b""), "have one number"),
        (
            lambda root: (root / "one" / "7.png").rename(root / "one" / "x.png"),
            "its frame x.png has no number",
        ),
        (lambda root: (root / "one" / "5.png").write_bytes(b"no"), "UnidentifiedImageError"),
    ],
)
def test_broken_folders_of_frames_are_passed_over(stills, change, cause):
    change(stills)
    dataset = frames_of(stills, shuffle=False)
    skipped = dict(bad for position in range(2) for bad in dataset.sample(position).skipped)
    assert set(skipped) == {"one"}
    assert cause in skipped["one"]


def test_rates_of_frames_need_to_be_known(stills):
    with pytest.raises(ValueError, match="fps picks among frames whose source_fps is known"):
        frames_of(stills, fps=4.0)
    with pytest.raises(ValueError, match="source_fps"):
        frames_of(stills, source_fps=0.0)


def test_clips_are_not_sorted_by_size(folder, tars, stills):
    for dataset in (in_folder(folder), in_tars(tars), frames_of(stills)):
        with pytest.raises(WrongInput, match="clips are not sorted by their sizes"):
            BySize(dataset, [(8, 8), (16, 16)], own_only=False)
