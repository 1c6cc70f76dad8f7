"""Shards: what is in a tar, the index of it, and where shards come from."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mdmkit.data import Dataset, tarindex
from mdmkit.data.shards import WebDataset
from mdmkit.errors import MdmkitError, WrongInput

EMOJI = Path(os.environ.get("MDMKIT_EMOJI", Path(__file__).parents[2] / "../shared/data/emoji"))


def _one(path: Path | str, **settings) -> WebDataset:
    return WebDataset(seed=0, resolution=8, urls=str(path), **settings)


def _captions(dataset: WebDataset, count: int | None = None) -> list[str]:
    return [dataset.sample(position).caption for position in range(count or len(dataset))]


def test_each_epoch_holds_every_sample_once(shards):
    dataset = _one(shards)
    assert isinstance(dataset, Dataset)
    assert len(dataset) == 12
    assert sorted(_captions(dataset), key=int) == [str(i) for i in range(12)]
    assert _captions(dataset) == _captions(_one(shards)) == dataset.captions(12)
    assert _captions(_one(shards, shuffle=False)) == [str(i) for i in range(12)]
    assert {dataset.sample(i).key.split("/")[0] for i in range(12)} == {"s-0.tar", "s-2.tar"}


def test_pickled_as_workers_get_it_and_forked(shards):
    dataset = _one(shards, shuffle=False)
    first = dataset.sample(3)
    copy = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(copy.sample(3).image, first.image)


def test_few_files_are_open_at_a_time(tmp_path: Path, write_tar, encoded):
    for shard in range(9):
        write_tar(tmp_path / f"{shard}.tar", [("a.png", encoded(shard)), ("a.txt", b"x")])
    dataset = _one(tmp_path, window=1)
    before = len(os.listdir("/proc/self/fd"))
    for position in range(9):
        dataset.sample(position)
    assert len(os.listdir("/proc/self/fd")) - before <= 4
    del dataset
    assert len(os.listdir("/proc/self/fd")) == before


def test_members_of_every_kind(tmp_path: Path, write_tar, encoded):
    odd = [
        ("./dir.v1/a.PNG", encoded(0)),
        ("./dir.v1/a.Txt", "größer 猫\n".encode()),
        ("./._dir", b"junk"),
        ("LICENSE", b"no extension"),
        ("b.jpeg", encoded(1, format="jpeg")),
        (
            "b.json",
            json.dumps({"text": {"en": "from json"}, "original_width": 900, "original_height": 500}).encode(),
        ),
        ("b.txt", b""),
    ]
    dataset = _one(write_tar(tmp_path / "odd.tar", odd), shuffle=False)
    samples = [dataset.sample(position) for position in range(len(dataset))]
    assert [(sample.key, sample.caption, sample.size) for sample in samples] == [
        ("odd.tar/dir.v1/a", "größer 猫", (20, 30)),
        ("odd.tar/b", "", (500, 900)),
    ]
    nested = _one(tmp_path / "odd.tar", shuffle=False, caption="json.text.en")
    assert nested.sample(1).caption == "from json"
    assert nested.sample(0).caption == "from json"  # the other has no json: passed over
    assert nested.sample(0).skipped == (
        ("odd.tar/dir.v1/a", "ValueError: it has no json member (it has png, txt)"),
    )
    assert _captions(_one(tmp_path / "odd.tar", caption="none")) == ["", ""]
    with pytest.raises(MdmkitError, match=r"json has no field 'text.fr'|no json member"):
        _one(tmp_path / "odd.tar", caption="json.text.fr").sample(0)


def test_duplicate_keys_are_samples_of_their_own(tmp_path: Path, write_tar, encoded):
    members = []
    for i in range(3):
        members += [("same.png", encoded(i)), ("same.txt", str(i).encode())]
    assert _captions(_one(write_tar(tmp_path / "d.tar", members), shuffle=False)) == ["0", "1", "2"]


def test_the_packed_resolution_is_read(tmp_path: Path, write_tar, encoded):
    sizes = {"4.png": (4, 4), "8.png": (8, 8), "8x16.png": (8, 16), "png": (32, 32)}
    tar = write_tar(tmp_path / "p.tar", [(f"a.{ext}", encoded(0, size=size)) for ext, size in sizes.items()])

    def read(resolution) -> tuple[int, int]:
        dataset = WebDataset(seed=0, resolution=resolution, urls=str(tar), caption="none")
        return dataset.sample(0).size

    assert read(4) == (4, 4)
    assert read(6) == read(8) == (8, 8)
    assert read((8, 16)) == read((4, 8)) == (8, 16)
    assert read(16) == read((8, 12)) == (32, 32)


def test_unreadable_samples_are_passed_over_and_named(tmp_path: Path, write_tar, encoded):
    members = [("a.png", encoded(0)), ("a.txt", b"good"), ("b.png", encoded(1)[:200]), ("b.txt", b"cut")]
    members += [("c.txt", b"no picture"), ("d.png", encoded(2)), ("e.png", encoded(3)), ("e.txt", b"\xff")]
    dataset = _one(write_tar(tmp_path / "x.tar", members), shuffle=False)
    samples = [dataset.sample(position) for position in range(5)]
    assert [sample.caption for sample in samples] == ["good"] * 5
    assert samples[0].skipped == ()
    causes = {key: cause for sample in samples for key, cause in sample.skipped}
    assert set(causes) == {"x.tar/b", "x.tar/c", "x.tar/d", "x.tar/e"}
    assert causes["x.tar/c"] == "ValueError: it has no picture (it has txt)"
    assert causes["x.tar/d"] == "ValueError: it has no txt member (it has png)"
    assert causes["x.tar/e"].startswith("UnicodeDecodeError")
    with pytest.raises(
        MdmkitError, match=r"^2 samples in a row could not be read, the last x.tar/.; |^2 samples"
    ):
        _one(tmp_path / "x.tar", shuffle=False, caption="html", max_bad=2).sample(0)


def test_a_changed_shard_is_indexed_again(tmp_path: Path, write_tar, encoded):
    tar = write_tar(tmp_path / "c.tar", [("a.png", encoded(0)), ("a.txt", b"before")])
    assert _captions(_one(tar)) == ["before"]
    write_tar(tar, [("b.png", encoded(1)), ("b.txt", b"one"), ("c.png", encoded(2)), ("c.txt", b"two")])
    assert _captions(_one(tar, shuffle=False)) == ["one", "two"]


def test_an_index_is_made_once_and_a_broken_one_again(shards, tmp_path: Path, monkeypatch):
    cache = tmp_path / "own"
    expected = _captions(_one(shards, cache=str(cache)))
    files = sorted((cache / "index").glob("*.npz"))
    assert len(files) == 3
    with monkeypatch.context() as patch:
        patch.setattr(tarindex, "scan", lambda path: pytest.fail("indexed again"))
        assert _captions(_one(shards, cache=str(cache))) == expected
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert _captions(_one(shards, cache=str(cache))) == expected


def test_an_index_beside_the_shard_serves_only_this_shard(
    shards, tmp_path: Path, monkeypatch, write_tar, encoded
):
    tar = tmp_path / "tars" / "s-0.tar"
    tarindex.save(tarindex.scan(tar), tarindex.beside(tar), stamp=tarindex.fingerprint(tar))
    with monkeypatch.context() as patch:
        patch.setattr(tarindex, "scan", lambda path: pytest.fail("indexed again"))
        os.utime(tar)  # copying changes the time
        assert len(_one(tar)) == 5
    write_tar(tar, [("a.png", encoded(0)), ("a.txt", b"other")])
    assert _captions(_one(tar)) == ["other"]


def test_missing_shards_are_named_at_once(shards, tmp_path: Path):
    pattern = str(tmp_path / "tars" / "s-{0..5}.tar")
    with pytest.raises(WrongInput) as raised:
        _one(pattern)
    folder = tmp_path / "tars"
    assert str(raised.value) == (
        f"urls = {pattern!r}: 3 of 6 shards are missing: {folder}/s-3.tar, {folder}/s-4.tar, {folder}/s-5.tar"
    )


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ("", "names no shard"),
        ("a-{0..3.tar", "Unbalanced"),
        ("${NOWHERE}/a.tar", "missing environment variable"),
        ("pipe:cat a.tar", "a pipe runs a shell; say --allow-pipe"),
        (
            "memory://nowhere/{a,b}.tar",
            "2 of 2 shards are missing: memory://nowhere/a.tar, memory://nowhere/b.tar",
        ),
        ("strange://a.tar", "strange://a.tar: cannot be fetched: ValueError: Protocol not known: strange"),
    ],
)
def test_patterns_that_cannot_be_read(urls, message):
    with pytest.raises(MdmkitError) as raised:
        _one(urls)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_damaged_shards(tmp_path: Path, write_tar, encoded):
    good = write_tar(tmp_path / "good.tar", [("a.png", encoded(0)), ("b.png", encoded(1, size=(90, 90)))])
    (tmp_path / "cut.tar").write_bytes(good.read_bytes()[:6000])
    (tmp_path / "zip.tar").write_bytes(gzip.compress(good.read_bytes()))
    with pytest.raises(
        MdmkitError, match=r"2 of 3 shards cannot be read as plain tar files; .*cut.tar: .*zip.tar: "
    ):
        _one(tmp_path)
    (tmp_path / "none").mkdir()
    write_tar(tmp_path / "none" / "empty.tar", [])
    with pytest.raises(MdmkitError, match="the shards hold no samples"):
        _one(tmp_path / "none")
    (tmp_path / "none" / "deeper").mkdir()
    with pytest.raises(WrongInput, match="names no shard"):
        _one(tmp_path / "none" / "deeper")


def test_remote_shards_are_fetched_once(shards, tmp_path: Path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for shard in range(3):
        memory.pipe(f"/far/s-{shard}.tar", (tmp_path / "tars" / f"s-{shard}.tar").read_bytes())
    try:
        assert _captions(_one("memory://far/s-{0..2}.tar")) == _captions(_one(shards))
    finally:
        memory.rm("/far", recursive=True)
    assert len(_one("memory://far/s-{0..2}.tar")) == 12


def test_pipes_where_they_are_allowed(shards, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MDMKIT_ALLOW_PIPE", "1")
    assert _captions(_one(f"pipe:cat {shards}")) == _captions(_one(shards))
    with pytest.raises(MdmkitError, match="cannot be fetched: "):
        _one("pipe:echo half; exit 3")
    with pytest.raises(MdmkitError, match="cannot be fetched: "):
        _one("pipe:echo half; exit 3")  # half a file is not taken for a shard


def test_a_cache_that_cannot_be_written(shards, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MdmkitError, match=r"cannot be used as a cache: .*; say another by cache = "):
        _one(shards, cache=str(tmp_path / "file"))


def test_a_missing_extra_is_named(tmp_path: Path):
    code = (
        "import sys; sys.modules['webdataset'] = None\n"
        "from mdmkit.data.shards import WebDataset\n"
        "from mdmkit.errors import MdmkitError\n"
        "try: WebDataset(seed=0, resolution=8, urls='a.tar')\n"
        "except MdmkitError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("reading shards needs webdataset (")
    assert done.stdout.endswith("); pip install 'mdmkit[data]'\n")


def test_importing_datasets_imports_neither_torch_nor_webdataset():
    code = (
        "import sys, mdmkit.data, mdmkit.data.folder, mdmkit.data.shards, mdmkit.builtin.data\n"
        "print(sorted({'torch', 'webdataset', 'fsspec', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.skipif(not EMOJI.is_dir(), reason=f"no emoji shards at {EMOJI} (set MDMKIT_EMOJI)")
def test_real_shards():
    dataset = WebDataset(seed=0, resolution=64, urls=str(EMOJI / "emoji-{000000..000007}.tar"))
    assert len(dataset) == 3495
    assert len(set(dataset.captions(3495))) == 3495
    samples = [dataset.sample(position) for position in range(3490, 3500)]
    assert all(sample.size == (128, 128) and not sample.skipped for sample in samples)
    assert all(sample.image.shape == (64, 64, 3) and sample.image[0, 0].min() > 250 for sample in samples)
    assert all(sample.image.std() > 10 for sample in samples)
