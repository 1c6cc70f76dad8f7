"""Weights in prompts: what is read, which tokens they fall on, what they do in a network."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mdmkit.nn.core import TextPath
from mdmkit.nn.unet import Running
from mdmkit.text import BytesEncoder, CachedEncoder, ClassEncoder, T5Encoder, TextEncoder, WeightedPrompts
from mdmkit.text.weighted import parse, token_weights
from tests.nn import nests

words = st.text("ab :()\\\u00e9\u4e16", max_size=8)
weights = st.floats(0, 4).map(lambda w: round(w, 3))


def escaped(text: str) -> str:
    return "".join("\\" + c if c in "()\\" else c for c in text)


@given(parts=st.lists(st.tuples(words, weights.filter(lambda w: w != 1) | st.none()), max_size=5))
def test_what_is_written_is_read(parts: list[tuple[str, float | None]]):
    prompt, text, expected = "", "", []
    for words_, weight in parts:
        if weight is not None and not words_.strip():
            continue
        prompt += escaped(words_) if weight is None else f"({escaped(words_)}:{weight})"
        text += words_
        expected += [1.0 if weight is None else weight] * len(words_)
    assert parse(prompt) == (text, tuple(expected))


def test_weights_inside_of_others_are_multiplied():
    text, heavy = parse("a ((red:2) disc:1.5) (at 10:30:0.5)")
    assert text == "a red disc at 10:30"
    assert heavy == (1.0,) * 2 + (3.0,) * 3 + (1.5,) * 5 + (1.0,) + (0.5,) * 8
    # a backslash before anything else is one
    assert parse(r"a\b (c\d:2)").text == r"a\b c\d"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a (red", r"prompt 'a (red': the parenthesis at character 3 is not closed; write \( for the "),
        ("a red)", r"prompt 'a red)': the parenthesis at character 6 closes nothing; write \) for the "),
        ("(red)", r"the parenthesis at character 1 has no weight; write (words:1.4), or \( and \) for the"),
        ("(red:much)", "character 1 has the weight 'much'; expected a number of at least 0, like 1.4"),
        ("(red:-1)", "has the weight '-1'; expected a number of at least 0, like 1.4"),
        ("(red:nan)", "has the weight 'nan'; expected a number of at least 0, like 1.4"),
        ("(red:inf)", "has the weight 'inf'; expected"),
        ("(red:)", "has the weight ''; expected"),
        ("( :2)", "character 1 holds no words; put those to weigh in front of the colon"),
        ("(a:1.2 (b:2)", "the parenthesis at character 1 is not closed"),
    ],
)
def test_what_cannot_be_read_is_one_line(prompt: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        parse(prompt)
    assert "\n" not in str(error.value)


@given(text=words)
def test_a_prompt_without_marks_weighs_nothing(text: str):
    assert parse(escaped(text)) == (text, (1.0,) * len(text))


def bytes_encoder(**given: Any) -> BytesEncoder:
    torch.manual_seed(1)
    return BytesEncoder(width=16, heads=2, layers=1, **given)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> T5Encoder:
    """Of tokens that are words with the space in front, pieces and letters."""
    from tests.text.test_pretrained import TINY, save_tokenizer, transformers

    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    transformers.T5EncoderModel(transformers.T5Config(vocab_size=48, **TINY)).save_pretrained(folder)
    save_tokenizer(folder)
    return T5Encoder(model=str(folder), width=16, max_tokens=12)


def test_bytes_are_those_of_their_characters():
    encode = bytes_encoder(max_tokens=8)
    _, mask, got = WeightedPrompts(encode)(["(\u00e9:3)a(\u4e16:0.5)", "ab", "(abcdefghijkl:2)"])
    assert got[0].tolist() == [1, 3, 3, 1, 0.5, 0.5, 0.5, 1]  # start, two bytes, one, three, padding
    assert mask[0].sum() == 7
    assert got[1].tolist() == [1] * 8
    assert got[2].tolist() == [1] + [2] * 7  # cut to the encoder's length


def test_words_are_their_tokens(t5: T5Encoder):
    features, mask, got = WeightedPrompts(t5)(["a (red:2) (small:0.5) star", "(left:3) xy"])
    plain, plain_mask = t5(["a red small star", "left xy"])
    assert torch.equal(features, plain)
    assert torch.equal(mask, plain_mask)
    assert got[0][mask[0]].tolist() == [1, 2, 0.5, 1, 1]  # the last is </s>
    assert got[1][mask[1]].tolist()[0] == 3
    assert set(got[1][1:].tolist()) == {1.0}


def test_a_token_of_two_words_is_between():
    assert token_weights(parse("(ab:3)c d"), [(0, 3), (3, 4), (3, 5), (0, 0)]) == [7 / 3, 1, 1, 1]


def test_classes_and_packed_features():
    classes = ClassEncoder(width=8, names=("cat", "dog"))
    assert WeightedPrompts(classes)(["(dog:1.5)", ""])[2].tolist() == [[1.5], [1.0]]
    cached = CachedEncoder(width=16, encoder=lambda **_: bytes_encoder())
    assert WeightedPrompts(cached)(["(a:2)b"])[2][0, :3].tolist() == [1, 2, 1]

    class Mute(TextEncoder):
        width = 4

        def encode(self, captions: Any) -> Any:
            return torch.zeros(len(captions), 3, 4), torch.ones(len(captions), 3, dtype=torch.bool)

    assert WeightedPrompts(Mute())(["red"])[2].tolist() == [[1, 1, 1]]
    with pytest.raises(ValueError, match="Mute does not say which characters a token stands for"):
        WeightedPrompts(Mute())(["(red:2)"])


def nest_of(**given: Any):
    nest = nests.nest(2, micro_conditioning=None, dtype=torch.float64, **given)
    nests.stir(nest)
    return nest


@pytest.mark.parametrize("masked", [True, False])
def test_weight_one_is_the_plain_prompt_bit_for_bit(masked: bool):
    nest, encode = nest_of(masked_cross_attention=masked), bytes_encoder().double()
    torch.manual_seed(0)
    z = [torch.randn(2, 3, s, s, dtype=torch.float64) for s in (8, 16)]
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    cond, mask = encode(["a red star", "ring"])
    pad = nests.WIDTH - cond.shape[-1]
    cond = torch.nn.functional.pad(cond, (0, pad)) if pad > 0 else cond[..., : nests.WIDTH]
    plain = nest(z, t, cond, mask)
    for said in (["(a red star:1)", "ring"], ["(a:2) red star", "ring"]):
        heavy = WeightedPrompts(encode)(said)[2]
        pairs = list(zip(nest(z, t, cond, mask, cond_weights=heavy), plain, strict=True))
        assert all(torch.equal(a[0], b[0]) for a, b in pairs) == (":2" not in said[0])
        # a picture does not see the weights of its neighbours
        assert all(torch.equal(a[1], b[1]) for a, b in pairs)


def test_a_token_counts_so_many_times_where_pixels_look():
    """Against attention written out, whose probabilities are multiplied."""
    nest = nest_of(pooled_text=False)
    torch.manual_seed(0)
    tokens = 7
    z = [torch.randn(2, 3, s, s, dtype=torch.float64) for s in (8, 16)]
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    cond = torch.randn(2, tokens, nests.WIDTH, dtype=torch.float64)
    mask = torch.arange(tokens) < torch.tensor([[7], [4]])
    heavy = torch.rand(2, tokens, dtype=torch.float64) * 3
    weighed = 0

    def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
        nonlocal weighed
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if seen is not None:
            scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
        share = scores.softmax(-1)
        if seen is not None:
            weighed += 1
            share = share * heavy[:, None, None]
        return share @ v

    got = nest(z, t, cond, mask, cond_weights=heavy)
    nest.attend = attend
    expected = nest(z, t, cond, mask)
    assert weighed > 0
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_pooled_text_is_weighed_over_the_number_of_tokens():
    torch.manual_seed(0)
    path = TextPath(6, cond_width=None, layers=0, heads=1, pooled_dim=5, masked=True, dtype=torch.float64)
    cond, heavy = torch.randn(1, 3, 6, dtype=torch.float64), torch.tensor([[2.0, 0.0, 5.0]])
    mask = torch.tensor([[True, True, False]])
    pooled = path(cond, mask, Running(), heavy).pooled
    assert path.pool is not None
    torch.testing.assert_close(pooled, path.pool(2 * cond[:, 0] / 2))


def test_weights_of_another_length_are_refused():
    cond = torch.zeros(1, 4, nests.WIDTH, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"a weight for each token, got \(1, 3\) and text of \(1, 4\)"):
        nest_of().read(cond, None, torch.ones(1, 3))
