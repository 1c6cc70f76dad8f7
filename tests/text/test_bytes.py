"""The encoder over UTF-8 bytes: its tokens, its mask, and that a caption does not see its batch mates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.text import BytesEncoder
from mdmkit.text.bytes import caption_bytes

captions = st.lists(st.text(max_size=30), min_size=1, max_size=5)


def encoder(*, seed: int = 0, **settings) -> BytesEncoder:
    torch.manual_seed(seed)
    return BytesEncoder(**{"width": 16, "max_tokens": 24, "dtype": torch.float64} | settings)


@given(caption=st.text(max_size=40), limit=st.integers(0, 40))
def test_a_cut_falls_between_two_characters_and_as_late_as_it_can(caption, limit):
    kept = caption_bytes(caption, limit).decode()  # raises where the cut is inside a character
    assert caption.startswith(kept)
    assert len(kept.encode()) <= limit
    if kept != caption:
        assert len(caption[: len(kept) + 1].encode()) > limit


def test_half_a_surrogate_pair_is_a_question_mark():
    assert caption_bytes("a\ud800b", 10) == b"a?b"


@given(captions=captions)
def test_the_mask_counts_a_start_token_and_the_bytes(captions):
    features, mask = encoder()(captions)
    lengths = [1 + len(caption_bytes(caption, 23)) for caption in captions]
    assert mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == lengths
    assert all(row[:length].all() for row, length in zip(mask, lengths, strict=True))
    assert features.shape == (*mask.shape, 16)
    assert (features[~mask] == 0).all()
    assert mask.shape[1] <= 24
    assert mask.shape[1] % 8 == 0


@given(captions=captions, seed=st.integers(0, 100))
def test_a_caption_does_not_depend_on_its_batch_mates(captions, seed):
    encode = encoder(seed=seed)
    features, mask = encode(captions)
    for row, caption in enumerate(captions):
        alone, alone_mask = encode([caption])
        torch.testing.assert_close(features[row][mask[row]], alone[0][alone_mask[0]], rtol=1e-10, atol=1e-12)


def test_every_byte_and_its_place_matter():
    encode = encoder()
    features = [encode([caption])[0].sum(dim=1) for caption in ("red star", "red stab", "star red", "")]
    for i, one in enumerate(features):
        for other in features[i + 1 :]:
            assert (one - other).abs().max() > 1e-3


def test_cut_captions_are_counted():
    encode = encoder(max_tokens=8)
    encode(["1234567", "12345678", ""])
    encode(["é" * 4])
    assert encode.truncated == 2


def test_it_is_trained_through_every_parameter_and_saved():
    encode = encoder()
    assert encode.trainable
    features, _ = encode(["a red star", "a blue ring"])
    features.square().sum().backward()
    for name, parameter in encode.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    other = encoder(seed=1)
    other.load_state_dict(encode.state_dict())
    torch.testing.assert_close(other(["x"])[0], encode(["x"])[0], rtol=0, atol=0)


def test_it_builds_on_meta_and_takes_no_captions_too():
    meta = BytesEncoder(width=8, heads=2, device="meta")
    features, mask = meta(["abc"])
    assert (features.is_meta, mask.is_meta, features.shape) == (True, True, (1, 8, 8))
    assert encoder()([])[0].shape[0] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 10, "heads": 4}, "heads=4 does not divide width=10"),
        ({"max_tokens": 0}, "expected max_tokens >= 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BytesEncoder(**settings)
