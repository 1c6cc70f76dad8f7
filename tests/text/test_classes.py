"""One vector a class: names, numbers, the empty caption, and captions that are none of them."""

from __future__ import annotations

import pytest
import torch

from mdmkit.text import ClassEncoder

NAMES = ("tench, Tinca tinca", "goldfish", "great white shark")


def test_names_numbers_and_the_empty_caption():
    encode = ClassEncoder(names=NAMES, width=4)
    features, mask = encode(["goldfish", "1", "", "  great white shark\n"])
    assert features.shape == (4, 1, 4)
    assert mask.all()
    torch.testing.assert_close(features[:, 0], encode.classes.weight[[1, 1, 3, 2]], rtol=0, atol=0)
    assert encode.trainable
    assert dict(encode.state_dict()).keys() == {"classes.weight"}


def test_a_name_wins_over_a_number():
    encode = ClassEncoder(names=("1", "0"), width=4)
    assert [encode.index(caption) for caption in ("0", "1", "")] == [1, 0, 2]


def test_a_thousand_classes_by_number_or_from_a_file(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(f"class number {index}" for index in range(1000)) + "\n", encoding="utf-8")
    named, numbered = ClassEncoder(file=str(file)), ClassEncoder(count=1000)
    assert named.classes.weight.shape == numbered.classes.weight.shape == (1001, 64)
    assert named.index("class number 999") == named.index("999") == numbered.index("999") == 999


def test_gradients_reach_the_rows_of_the_batch_only():
    encode = ClassEncoder(names=NAMES, width=4)
    encode(["0", ""])[0].sum().backward()
    assert encode.classes.weight.grad is not None
    assert encode.classes.weight.grad[:, 0].tolist() == [1.0, 0.0, 0.0, 1.0]


def test_it_builds_on_meta():
    features, mask = ClassEncoder(count=10, width=4, device="meta")(["3"])
    assert (features.is_meta, mask.is_meta, features.shape) == (True, True, (1, 1, 4))


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        (
            "goldfisch",
            "unknown class 'goldfisch'; did you mean 'goldfish'? "
            "(3 classes: tench, Tinca tinca, goldfish, great white shark)",
        ),
        ("3", "unknown class 3; expected a number from 0 to 2"),
        ("-1", "unknown class '-1' (3 classes: tench, Tinca tinca, goldfish, great white shark)"),
    ],
)
def test_an_unknown_caption_is_refused(caption, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        ClassEncoder(names=NAMES)([caption])
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected exactly one of names, file and count, got none"),
        ({"names": NAMES, "count": 3}, "expected exactly one of names, file and count, got names, count"),
        ({"count": 0}, "expected count >= 1, got 0"),
        ({"names": ("a", "b", "a")}, "names: classes 0 and 2 are both named 'a'; make the names distinct"),
        ({"names": ("a", " ")}, "names: class 1 has no name; the empty caption is no class"),
        (
            {"file": "/no/such/file"},
            "/no/such/file: cannot read class names: No such file or directory; expected one name a line",
        ),
    ],
)
def test_classes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        ClassEncoder(**settings)
    assert str(error.value) == message


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("")
    with pytest.raises(ValueError, match="no class names; expected one name a line"):
        ClassEncoder(file=str(tmp_path / "classes.txt"))
