"""Packed features: the empty caption's in place of dropped ones, and prompts only through an encoder."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from mdmkit.text import BytesEncoder, CachedEncoder

WIDTH = 8


def packed_by(*, device=None, dtype=None) -> BytesEncoder:
    torch.manual_seed(0)
    return BytesEncoder(width=WIDTH, heads=2, layers=1, device=device, dtype=dtype)


def with_empty(length: int) -> CachedEncoder:
    encode = CachedEncoder(width=WIDTH)
    encode.hold_empty(torch.full((length, WIDTH), 7.0), torch.arange(length) < max(length - 1, 1))
    return encode


@pytest.mark.parametrize("length", [1, 3, 6])
def test_dropped_rows_get_the_empty_caption_and_the_others_stay(length):
    features, mask = torch.randn(3, 4, WIDTH), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    new, new_mask = with_empty(length).dropped(features, mask, torch.tensor([False, True, False]))
    assert new.shape == (3, max(4, length), WIDTH)
    for row in (0, 2):
        torch.testing.assert_close(new[row, :4], features[row], rtol=0, atol=0)
        assert new_mask[row, :4].equal(mask[row])
        assert not new_mask[row, 4:].any()
    assert new_mask[1].sum() == max(length - 1, 1)
    assert (new[1][new_mask[1]] == 7.0).all()
    assert (new[1][~new_mask[1]] == 0.0).all()


def test_the_empty_caption_from_a_file(tmp_path):
    file = tmp_path / "empty.features.safetensors"
    save_file({"features": torch.ones(2, WIDTH), "mask": torch.tensor([1, 0], dtype=torch.uint8)}, file)
    features, mask = CachedEncoder(width=WIDTH, empty=str(file), dtype=torch.float64)(["", ""])
    assert (features.shape, features.dtype) == ((2, 2, WIDTH), torch.float64)
    assert mask.tolist() == [[True, False]] * 2
    assert (features[:, 1] == 0).all()


def test_prompts_go_to_the_encoder_that_is_made_when_the_first_one_comes():
    made = []

    def make(**context):
        made.append(packed_by(**context))
        return made[-1]

    encode = CachedEncoder(width=WIDTH, encoder=make)
    assert not made
    features, mask = encode(["a red star", ""])
    expected, expected_mask = packed_by()(["a red star", ""])
    torch.testing.assert_close(features, expected, rtol=0, atol=0)
    assert mask.equal(expected_mask)
    encode(["again"])
    assert len(made) == 1
    assert not encode.state_dict()
    assert not list(encode.parameters())


@pytest.mark.parametrize(
    ("make", "captions", "message"),
    [
        (lambda: CachedEncoder(width=WIDTH), [""], "the features of the empty caption are not known"),
        (lambda: with_empty(2), ["", "a star"], "'a star' cannot be encoded; name the encoder"),
        (lambda: CachedEncoder(width=WIDTH, empty="/no/file"), [""], "cannot read the features of the empty"),
        (lambda: CachedEncoder(width=9, encoder=packed_by), ["a"], "has width 8, but the cached features 9"),
    ],
)
def test_what_is_not_there_is_said(make, captions, message):
    with pytest.raises(ValueError, match=message):
        make()(captions)


def test_everything_is_padded_to_a_stated_length():
    """Rows of any batch, the empty caption and prompts: a network that looks at padding needs it."""
    encode = CachedEncoder(width=WIDTH, max_tokens=9, encoder=packed_by)
    encode.hold_empty(torch.full((2, WIDTH), 7.0), torch.tensor([True, False]))
    features, mask = torch.randn(3, 4, WIDTH), torch.ones(3, 4).bool()
    for rows in (torch.tensor([False] * 3), torch.tensor([False, True, False])):
        new, new_mask = encode.dropped(features, mask, rows)
        assert (new.shape, new_mask.shape) == ((3, 9, WIDTH), (3, 9))
        torch.testing.assert_close(new[0, :4], features[0], rtol=0, atol=0)
        assert not new_mask[:, 4:].any()
        assert not new[:, 4:].any()
    for captions in ([""], ["a star", ""]):
        assert encode(captions)[0].shape == (len(captions), 9, WIDTH)
    with pytest.raises(ValueError, match="text features of 10 tokens, more than max_tokens = 9"):
        encode.dropped(torch.randn(1, 10, WIDTH), torch.ones(1, 10).bool(), torch.tensor([False]))
    # what is not known is not asked for where no row is dropped
    CachedEncoder(width=WIDTH).dropped(features, mask, torch.tensor([False] * 3))


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"expected features \(L, 8\)"):
        CachedEncoder(width=WIDTH).hold_empty(torch.zeros(2, 9), torch.ones(2))
    with pytest.raises(ValueError, match="have width 9, expected 8"):
        with_empty(1).dropped(torch.zeros(1, 2, 9), torch.ones(1, 2).bool(), torch.tensor([True]))
