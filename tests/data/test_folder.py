"""Folders of pictures: where captions come from, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mdmkit.data import Dataset
from mdmkit.data.folder import Folder
from mdmkit.errors import MdmkitError, WrongInput


def _epoch(dataset: Folder) -> dict[str, str]:
    samples = [dataset.sample(position) for position in range(len(dataset))]
    return {sample.key: sample.caption for sample in samples}


def test_txt_captions_at_any_depth(tmp_path: Path, encoded):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    captions = {"a.png": "a cat", "B.JPG": "größer 猫 🐈", "deep/er/c.webp": ""}
    for i, (name, caption) in enumerate(captions.items()):
        file = tmp_path / name
        file.write_bytes(encoded(i, format={".png": "png", ".JPG": "jpeg", ".webp": "webp"}[file.suffix]))
        file.with_suffix(".TXT" if name == "a.png" else ".txt").write_text(f"{caption}\n", "utf-8")
    (tmp_path / ".hidden.png").write_bytes(b"")
    dataset = Folder(seed=0, resolution=8, path=str(tmp_path))
    assert isinstance(dataset, Dataset)
    assert _epoch(dataset) == captions
    assert sorted(dataset.captions(3)) == sorted(captions.values())
    sample = dataset.sample(10**9)
    assert sample.image.shape == (8, 8, 3)
    assert sample.size == (20, 30)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_of_captions(tmp_path: Path, encoded, suffix):
    comma = "," if suffix == "csv" else "\t"
    (tmp_path / "in").mkdir()
    for i, name in enumerate(("in/a.png", "b.png", "unused.png")):
        (tmp_path / name).write_bytes(encoded(i))
    lines = [
        comma.join(("caption", "file")),
        comma.join(('"one, ""two"""', "in/a.png")),
        comma.join(("", "b.png")),
    ]
    (tmp_path / f"all.{suffix}").write_text("\n".join(lines) + "\n", "utf-8-sig")
    dataset = Folder(seed=0, resolution=8, path=str(tmp_path))
    assert _epoch(dataset) == {"in/a.png": 'one, "two"', "b.png": ""}


def test_class_subfolders(tmp_path: Path, encoded):
    for i, name in enumerate(("cat/1.png", "cat/more/2.png", "grey dog/1.JPEG")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(i))
    dataset = Folder(seed=0, resolution=(4, 8), path=str(tmp_path))
    assert _epoch(dataset) == {"cat/1.png": "cat", "cat/more/2.png": "cat", "grey dog/1.JPEG": "grey dog"}
    assert dataset.class_names() == ["cat", "grey dog"]
    assert dataset.sample(0).image.shape == (4, 8, 3)


def test_a_link_back_up_does_not_loop(tmp_path: Path, encoded):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(encoded(0))
    (tmp_path / "cat" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert len(Folder(seed=0, resolution=4, path=str(tmp_path))) == 1


def test_order_is_by_name_without_shuffling_and_by_seed_with(tmp_path: Path, encoded):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))

    def keys(seed: int, **settings) -> list[str]:
        dataset = Folder(seed=seed, resolution=4, path=str(tmp_path), captions="none", **settings)
        return [dataset.sample(position).key for position in range(16)]

    assert keys(0, shuffle=False) == [f"{i % 8}.png" for i in range(16)]
    assert keys(0) == keys(0) != keys(1)
    assert sorted(keys(0)[:8]) == sorted(keys(0)[8:]) == [f"{i}.png" for i in range(8)]


def test_unreadable_pictures_are_passed_over_and_named(tmp_path: Path, encoded):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(encoded(i) if i != 3 else b"broken")
    dataset = Folder(seed=0, resolution=4, path=str(tmp_path), captions="none")
    again = Folder(seed=0, resolution=4, path=str(tmp_path), captions="none")
    samples = [dataset.sample(position) for position in range(12)]
    skipped = [key for sample in samples for key, _ in sample.skipped]
    assert skipped == ["3.png", "3.png"]  # once an epoch
    assert all("UnidentifiedImageError" in cause for sample in samples for _, cause in sample.skipped)
    # in another order of asking the same substitutes come
    assert [again.sample(position).key for position in reversed(range(12))][::-1] == [s.key for s in samples]


def test_too_many_unreadable_in_a_row_stop(tmp_path: Path):
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(
        MdmkitError, match=r"^5 samples in a row could not be read, the last \d+\.png: .* max_bad$"
    ):
        Folder(seed=0, resolution=4, path=str(tmp_path), captions="none", max_bad=5).sample(0)
    with pytest.raises(MdmkitError, match=r"^20 samples in a row"):
        Folder(seed=0, resolution=4, path=str(tmp_path), captions="none", max_bad=500).sample(0)


def test_a_single_sample_and_a_caption_that_is_not_utf8(tmp_path: Path, encoded):
    (tmp_path / "a.png").write_bytes(encoded(0))
    (tmp_path / "a.txt").write_bytes(b"fine")
    dataset = Folder(seed=0, resolution=4, path=str(tmp_path))
    assert [dataset.sample(position).caption for position in range(3)] == ["fine"] * 3
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(MdmkitError, match=r"a\.png: UnicodeDecodeError"):
        dataset.sample(0)


def _layout(root: Path, encoded, *names: str, **texts: str) -> str:
    root.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(i) if not name.endswith(".txt") else b"text")
    for name, text in texts.items():
        (root / name.replace("_", ".")).write_text(text, "utf-8")
    return str(root)


@pytest.mark.parametrize(
    ("names", "texts", "settings", "message"),
    [
        ((), {}, {}, "found no pictures"),
        (("a.png",), {}, {}, "found no captions; add a .txt"),
        (("a.png", "a.txt", "b.png"), {}, {}, "1 pictures without a .txt beside them: b.png$"),
        (("a.png",), {}, {"captions": "folders"}, "1 pictures outside of any class folder: a.png$"),
        (
            ("a.png",),
            {},
            {"captions": "csv"},
            "expected one .csv or .tsv in the folder, found none; say which",
        ),
        (("a.png",), {"x_csv": "", "y_csv": ""}, {}, r"found 2 \(x.csv, y.csv\); say which by table"),
        (
            ("a.png",),
            {"x_csv": "file,text\n"},
            {},
            "expected a header with column 'caption', got columns: file, text$",
        ),
        (("a.png",), {"x_csv": "file,caption\na.png\n"}, {}, "x.csv:2: expected 2 columns, got fewer$"),
        (("a.png",), {"x_csv": "file,caption\na.png,x\na.png,y\n"}, {}, "x.csv:3: a.png is named twice$"),
        (
            ("a.png",),
            {"x_csv": "file,caption\nb.png,x\n"},
            {},
            "1 pictures named in the table but not there: b.png$",
        ),
        (("a.png",), {"x_csv": "file,caption\n"}, {}, "found no pictures"),
        (("a.png",), {}, {"table": "no.csv"}, "no.csv: the table of captions is not there$"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path: Path, encoded, names, texts, settings, message):
    path = _layout(tmp_path / "pictures", encoded, *names, **texts)
    with pytest.raises(WrongInput, match=message) as raised:
        Folder(seed=0, resolution=4, path=path, **settings)
    assert "\n" not in str(raised.value)


def test_wrong_arguments(tmp_path: Path, encoded):
    with pytest.raises(WrongInput, match="expected a folder of pictures, found nothing"):
        Folder(seed=0, resolution=4, path=str(tmp_path / "nowhere"))
    path = _layout(tmp_path / "pictures", encoded, "a.png")
    with pytest.raises(WrongInput, match="expected a folder of pictures, found a file"):
        Folder(seed=0, resolution=4, path=str(Path(path) / "a.png"))
    with pytest.raises(ValueError, match="got 'nearby'"):
        Folder(seed=0, resolution=4, path=path, captions="nearby")
    with pytest.raises(ValueError, match="no held-out captions"):
        Folder(seed=0, resolution=4, path=path, captions="none").captions(1, held_out=True)


def test_crop_and_flip_are_keyed_by_position(tmp_path: Path, encoded):
    path = _layout(tmp_path / "pictures", encoded, "a.png")
    dataset = Folder(seed=0, resolution=8, path=path, captions="none", crop="random", flip=True)
    images = [dataset.sample(position).image for position in range(6)]
    assert not all(np.array_equal(images[0], image) for image in images)
    assert all(np.array_equal(dataset.sample(i).image, images[i]) for i in (5, 0, 3))
