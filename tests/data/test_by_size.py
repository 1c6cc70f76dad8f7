"""Pictures by the levels that they reach: none is enlarged, all come equally often or are counted."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdmkit.data import sizes
from mdmkit.data.by_size import BySize
from mdmkit.data.folder import Folder
from mdmkit.data.loader import batches
from mdmkit.data.shapes import Shapes
from mdmkit.data.shards import WebDataset
from mdmkit.errors import WrongInput

LEVELS = ((4, 4), (8, 12), (24, 24))
# (height, width), and the highest of LEVELS that it has
PICTURES = {
    "a.png": ((4, 4), 0),
    "b.png": ((4, 90), 0),
    "c.jpg": ((90, 7), 0),
    "d.png": ((8, 12), 1),
    "e.png": ((23, 40), 1),
    "f.png": ((24, 24), 2),
    "g.jpg": ((30, 50), 2),
    "h.png": ((60, 25), 2),
}
SMALL = {"i.png": (3, 50), "j.png": (2, 2)}


@pytest.fixture
def folder(tmp_path: Path, encoded) -> Path:
    made = tmp_path / "pictures"
    made.mkdir()
    plain = {name: size for name, (size, _) in PICTURES.items()} | SMALL
    for seed, (name, size) in enumerate(plain.items()):
        (made / name).write_bytes(
            encoded(seed, size=size, format="jpeg" if name.endswith("jpg") else "png")
        )
    (made / "broken.png").write_bytes(b"no picture")
    return made


def read(folder: Path, **settings) -> Folder:
    return Folder(seed=0, resolution=LEVELS[-1], path=str(folder), captions="none", **settings)


def keys(data: BySize, level: int, numbers: range) -> list[str]:
    return [data.sample(data.position(level, number)).key for number in numbers]


def test_every_picture_has_its_level_and_what_has_none_is_counted(folder: Path):
    data = BySize(read(folder), LEVELS, own_only=True)
    assert (data.counts, data.small, data.unread) == ((3, 2, 3), 2, 1)
    for level in range(3):
        own = {name for name, (_, top) in PICTURES.items() if top == level}
        assert set(keys(data, level, range(len(own)))) == own
    assert str(data) == (
        "by_source: of the pictures 3 stop at level 0 (4 x 4), 2 stop at level 1 (8 x 12), 3 stop at level 2 "
        "(24 x 24); left out: 2 smaller than level 0 and 1 unreadable"
    )
    wider = BySize(read(folder), LEVELS, own_only=False)
    assert wider.counts == (8, 5, 3)
    for level, count in enumerate((8, 5, 3)):
        enough = {name for name, (_, top) in PICTURES.items() if top >= level}
        assert set(keys(wider, level, range(count))) == enough


@pytest.mark.parametrize("own_only", [True, False])
def test_each_sequence_goes_round_its_pictures(folder: Path, own_only: bool):
    data = BySize(read(folder), LEVELS, own_only=own_only)
    assert data.counts is not None
    for level, count in enumerate(data.counts):
        rounds = [keys(data, level, range(turn * count, (turn + 1) * count)) for turn in range(4)]
        assert all(len(set(names)) == count for names in rounds)
        assert len({tuple(names) for names in rounds}) > 1, "every round has an order of its own"


def test_no_picture_is_enlarged_and_pooling_gives_it_as_it_is_at_its_level(folder: Path):
    data = BySize(read(folder), LEVELS, own_only=False)
    for level, (h, w) in enumerate(LEVELS):
        small = Folder(seed=0, resolution=(h, w), path=str(folder), captions="none")
        for number in range(6):
            sample = data.sample(data.position(level, number))
            assert sample.size[0] >= h
            assert sample.size[1] >= w
            assert sample.image.shape == (24, 24, 3)
            blocks = sample.image.reshape(h, 24 // h, w, 24 // w, 3)
            assert (blocks == blocks[:, :1, :, :1]).all(), "nothing between the pixels of its level"
            row = small.files.index(sample.key)
            alone = small.read(small.order[0]._replace(row=row), data.position(level, number))
            assert np.array_equal(blocks[:, 0, :, 0], alone.image)


def test_a_picture_that_is_turned_has_the_size_that_is_seen(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (8, 30)).save(file, "jpeg", exif=exif)
    (tmp_path / "turned.jpg").write_bytes(file.getvalue())
    assert Folder(seed=0, resolution=8, path=str(tmp_path), captions="none").picture_sizes()[0].tolist() == [
        [8, 30]
    ]


def test_sizes_are_read_once_until_a_picture_changes(folder: Path, monkeypatch, encoded):
    first = read(folder).picture_sizes()
    with monkeypatch.context() as patched:
        patched.setattr(sizes, "header_size", lambda file: pytest.fail("read again"))
        assert np.array_equal(read(folder).picture_sizes()[0], first[0])
    (folder / "a.png").write_bytes(encoded(5, size=(9, 9)))
    os.utime(folder / "a.png", ns=(1, 1))
    changed = read(folder).picture_sizes()
    assert changed[0][0].tolist() == [9, 9]
    assert np.array_equal(changed[0][1:], first[0][1:])
    for kept in (Path(os.environ["XDG_CACHE_HOME"]) / "mdmkit" / "sizes").glob("*.npz"):
        kept.write_bytes(b"half a file")
    assert np.array_equal(read(folder).picture_sizes()[0], changed[0])


@pytest.fixture
def tars(tmp_path: Path, write_tar, encoded) -> str:
    def said(h: int, w: int) -> bytes:
        return json.dumps({"height": h, "width": w}).encode()

    members = {
        "big": {"png": encoded(0, size=(24, 24)), "json": said(500, 300)},
        # stored at 24 though there never were more than 9 rows
        "enlarged": {"png": encoded(1, size=(24, 24)), "json": said(9, 300)},
        "packed": {"8x12.png": encoded(2, size=(8, 12)), "4.png": encoded(3, size=(4, 4))},
        "plain": {"jpg": encoded(4, size=(5, 5), format="jpeg")},
        "tiny": {"png": encoded(5, size=(3, 9))},
        "broken": {"png": b"no picture"},
    }
    names = list(members)
    for shard, part in enumerate((names[:4], [], names[4:])):
        flat = [(f"{name}.{ext}", data) for name in part for ext, data in members[name].items()]
        write_tar(tmp_path / "tars" / f"s-{shard}.tar", flat)
    return str(tmp_path / "tars")


def test_shards_count_what_is_stored_and_what_the_original_was(tars: str):
    data = WebDataset(seed=0, resolution=LEVELS[-1], urls=tars, caption="none")
    found = data.picture_sizes()
    assert [shard.tolist() for shard in found] == [
        [[24, 24], [9, 24], [8, 12], [5, 5]],
        [],
        [[3, 9], [0, 0]],
    ]
    sorted_by_size = BySize(data, LEVELS, own_only=True)
    assert (sorted_by_size.counts, sorted_by_size.small, sorted_by_size.unread) == ((1, 2, 1), 1, 1)
    assert set(keys(sorted_by_size, 1, range(2))) == {"s-0.tar/enlarged", "s-0.tar/packed"}
    assert keys(sorted_by_size, 0, range(3)) == ["s-0.tar/plain"] * 3


def test_workers_and_pickling_change_nothing(folder: Path):
    data = BySize(read(folder, flip=True, crop="random"), LEVELS, own_only=True)
    steps = [[data.position(level, number) for level in (2, 1, 0)] for number in range(4)]
    here = list(batches(data, steps))
    copy = pickle.loads(pickle.dumps(data))
    again = list(batches(copy, steps[::-1]))[::-1]
    for one, other in zip(here, again, strict=True):
        assert one.keys == other.keys
        assert np.array_equal(one.images.numpy(), other.images.numpy())


def test_unreadable_ones_are_replaced_by_pictures_of_the_same_level(folder: Path):
    whole = (folder / "f.png").read_bytes()
    # the header is whole, so that its size is known
    (folder / "f.png").write_bytes(whole[: len(whole) // 2])
    data = BySize(read(folder), LEVELS, own_only=True)
    samples = [data.sample(data.position(2, number)) for number in range(3)]
    assert {sample.key for sample in samples} == {"g.jpg", "h.png"}
    assert Counter(key for sample in samples for key, _ in sample.skipped) == {"f.png": 1}


def test_shapes_are_drawn_at_every_size():
    data = BySize(Shapes(seed=0, resolution=(24, 24)), LEVELS, own_only=False)
    assert data.counts is None
    assert str(data) == "by_source: the data have pictures of every size"
    for level, side in enumerate(LEVELS):
        sample = data.sample(data.position(level, 3))
        assert sample.image.shape == (24, 24, 3)
        assert sample.size == side
    assert data.sample(data.position(0, 3)).caption != data.sample(data.position(1, 3)).caption


def test_data_that_do_not_know_their_sizes_are_refused():
    class Other:
        resolution = (24, 24)

    with pytest.raises(WrongInput) as raised:
        BySize(Other(), LEVELS, own_only=True)
    assert str(raised.value) == (
        "by_source: a Other does not know the sizes of its pictures; take other train.levels, or other data "
        "('folder', 'webdataset' and 'shapes' know theirs)"
    )
