"""Packing a dataset as shards, and reading the same samples back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mdmkit.data.folder import Folder
from mdmkit.data.pack import pack
from mdmkit.data.pictures import shrink
from mdmkit.data.shards import WebDataset
from mdmkit.errors import MdmkitError, WrongInput

from noise_dataset import Noise  # isort: skip


class Lengths:
    """Features: each word's number; tokens padded to 5."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.tensor([[i < len(caption.split()) for i in range(5)] for caption in captions])
        return self.scale * torch.arange(1.0, 6)[None, :, None].expand(len(captions), 5, 2), mask


def _back(out: Path, **settings) -> WebDataset:
    return WebDataset(**{"seed": 5, "resolution": (12, 8), "urls": str(out), "shuffle": False} | settings)


def test_a_packed_dataset_reads_the_same(tmp_path: Path):
    told = []
    done = pack(
        Noise(), tmp_path / "out", count=10, shard_size=4, batch=3, progress=lambda *at: told.append(at)
    )
    assert (done.folder, done.samples, done.shards, done.skipped) == (tmp_path / "out", 10, 3, ())
    assert told == [(4, 10), (8, 10), (10, 10)]
    dataset = _back(tmp_path / "out")
    assert len(dataset) == 10
    for position in range(10):
        was, now = Noise().sample(position), dataset.sample(position)
        assert np.array_equal(was.image, now.image)
        assert (was.caption, was.size) == (now.caption, now.size)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    tars = [f"shard-00000{i}.tar" for i in range(3)]
    assert names == sorted(["pack.json", *tars, *(f"{tar}.index.npz" for tar in tars)])
    assert not (tmp_path / "cache").exists()  # the indices beside the shards served


def test_shards_are_the_same_bytes_each_time(tmp_path: Path):
    for name in ("a", "b"):
        pack(Noise(), tmp_path / name, count=5, resolutions=(4,))
    assert (tmp_path / "a/shard-000000.tar").read_bytes() == (tmp_path / "b/shard-000000.tar").read_bytes()


def test_webdataset_itself_reads_the_shards(tmp_path: Path):
    from webdataset.autodecode import Decoder, imagehandler

    pack(Noise(), tmp_path / "out", count=3, resolutions=((6, 4),))
    rows = list(map(Decoder([imagehandler("rgb8")]), _rows(tmp_path / "out")))
    assert [row["txt"] for row in rows] == [Noise().sample(i).caption for i in range(3)]
    assert all(np.array_equal(row["png"], Noise().sample(i).image) for i, row in enumerate(rows))
    assert rows[2]["json"] == {"caption": "größe größe", "height": 102, "width": 7, "key": "n2"}
    assert rows[0]["6x4.png"].shape == (6, 4, 3)


def test_lower_resolutions_are_means_and_are_read(tmp_path: Path):
    pack(Noise(), tmp_path / "out", count=4, resolutions=((3, 2), (6, 4), (12, 8)))
    for resolution in ((3, 2), (6, 4)):
        dataset = _back(tmp_path / "out", resolution=resolution)
        for position in range(4):
            was = Noise().sample(position)
            assert np.array_equal(dataset.sample(position).image, shrink(was.image, resolution))
            assert dataset.sample(position).size == was.size
    with pytest.raises(
        WrongInput, match="cannot pack at 16x16: the dataset is read at 12x8, and pack only shrinks"
    ):
        pack(Noise(), tmp_path / "more", count=1, resolutions=(16,))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_text_features(tmp_path: Path, dtype):
    pack(Noise(), tmp_path / "out", count=8, encoder=Lengths(), features_dtype=dtype, batch=3)
    dataset = _back(tmp_path / "out", features=True)
    for position in range(8):
        sample = dataset.sample(position)
        assert sample.features is not None
        assert sample.features_mask is not None
        assert sample.features.dtype == dtype
        assert sample.features_mask.tolist() == [True] * (position % 4) + [False] * (position % 4 == 0)
        assert sample.features[:, 0].tolist() == list(range(1, max(1, position % 4) + 1))
    features, mask = dataset.empty_features()
    assert features.shape == (1, 2)
    assert mask.tolist() == [False]
    # packed features are handed on when they are packed again
    pack(dataset, tmp_path / "again")
    again = _back(tmp_path / "again", features=True)
    assert np.array_equal(again.sample(3).features, dataset.sample(3).features)  # type: ignore[arg-type]
    assert again.empty_features()[0].shape == (1, 2)


def test_features_that_are_not_there_or_do_not_fit(tmp_path: Path):
    with pytest.raises(MdmkitError, match="text features do not fit into float16; pack them as float32"):
        pack(Noise(), tmp_path / "out", count=1, encoder=Lengths(1e6))
    pack(Noise(), tmp_path / "plain", count=1)
    dataset = _back(tmp_path / "plain", features=True)
    with pytest.raises(MdmkitError, match=r"it has no features.safetensors member"):
        dataset.sample(0)
    with pytest.raises(WrongInput, match="the empty caption's features are not there; pack the dataset with"):
        dataset.empty_features()


def test_unreadable_samples_are_left_out_not_replaced(tmp_path: Path, encoded):
    (tmp_path / "in").mkdir()
    for i in range(9):
        (tmp_path / f"in/{i}.png").write_bytes(encoded(i) if i % 4 else b"broken")
    dataset = Folder(seed=0, resolution=8, path=str(tmp_path / "in"), captions="none")
    done = pack(dataset, tmp_path / "out", shard_size=4, batch=2)
    assert done.samples == 6
    assert sorted({key for key, _ in done.skipped}) == ["0.png", "4.png", "8.png"]
    keys = [json.loads(row["json"]) for row in _rows(tmp_path / "out")]
    assert sorted(fields["key"] for fields in keys) == [f"{i}.png" for i in range(9) if i % 4]
    assert json.loads((tmp_path / "out/pack.json").read_text())["samples"] == 6


def _rows(out: Path) -> list[dict[str, Any]]:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    rows = []
    for tar in sorted(out.glob("*.tar")):
        with open(tar, "rb") as stream:
            rows += group_by_keys(tar_file_expander([{"url": str(tar), "stream": stream}]))
    return rows


class Stops(Exception):
    pass


def test_a_stopped_pack_goes_on(tmp_path: Path):
    def stop(done: int, count: int) -> None:
        if done == 8:
            raise Stops

    settings: dict[str, Any] = {"count": 14, "shard_size": 4, "batch": 2, "source": "mine"}
    another: dict[str, Any] = settings | {"source": "another"}
    with pytest.raises(Stops):
        pack(Noise(), tmp_path / "out", progress=stop, **settings)
    assert not (tmp_path / "out").exists()
    with pytest.raises(WrongInput, match=r"out\.partial: holds part of another pack; delete it"):
        pack(Noise(), tmp_path / "out", **another)
    dataset = Noise()
    assert pack(dataset, tmp_path / "out", **settings).samples == 14
    assert min(dataset.read) == 8
    assert not (tmp_path / "out.partial").exists()
    pack(Noise(), tmp_path / "whole", **settings)
    for tar in (tmp_path / "whole").glob("*.tar"):
        assert tar.read_bytes() == (tmp_path / "out" / tar.name).read_bytes()


def test_places_that_are_taken(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    with pytest.raises(WrongInput, match="expected a new or empty folder, found files"):
        pack(Noise(), tmp_path / "out", count=1)
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial/mine.txt").write_text("keep")
    with pytest.raises(WrongInput, match="is in the way and not part of a pack; move it"):
        pack(Noise(), tmp_path / "new", count=1)
    (tmp_path / "empty").mkdir()
    assert pack(Noise(), tmp_path / "empty", count=1).samples == 1


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch):
    from webdataset.writer import TarWriter

    write = TarWriter.write

    def full(self, row):
        if row["__key__"] == "000000005":
            raise OSError(28, "No space left on device")
        return write(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(TarWriter, "write", full)
        with pytest.raises(
            MdmkitError, match=r"out\.partial: No space left on device; the same command goes on"
        ):
            pack(Noise(), tmp_path / "out", count=8, shard_size=4)
    assert pack(Noise(), tmp_path / "out", count=8, shard_size=4).samples == 8


def test_an_endless_dataset_needs_a_count(tmp_path: Path):
    with pytest.raises(WrongInput, match="endless; say how many"):
        pack(Noise(), tmp_path / "out")
    with pytest.raises(ValueError, match="got 0, 1000, 32"):
        pack(Noise(), tmp_path / "out", count=0)
