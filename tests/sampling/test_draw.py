"""Pictures from captions: alone as among others, away from a negative text, from stored features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mdmkit.diffusion import Diffusion
from mdmkit.nn import NestedUNet
from mdmkit.sampling import CFG, Between, Start, ddim, known_low, none, uniform_t
from mdmkit.sampling.conditions import Conditions, between, encoded, read
from mdmkit.sampling.draw import Drawing, draw
from mdmkit.schedules import Cosine, shift_levels
from mdmkit.text import BytesEncoder, ClassEncoder
from tests.nn import nests

SIZES = [(8, 8), (16, 16)]
CAPTIONS = ["a", "a small red star left of", "", "a ring", "a", "a star"]
diffusion = Diffusion(schedules=shift_levels(Cosine(), SIZES))
drawing = Drawing(ddim, uniform_t, none, (CFG(3.0),), steps=2)
unguided = Drawing(ddim, uniform_t, none, (), steps=2)


def nest_of(*, masked: bool) -> NestedUNet:
    made = nests.nest(2, masked_cross_attention=masked, micro_conditioning=None, dtype=torch.float64)
    nests.stir(made)
    return made.float()


def encoder(pad: str = "exact") -> BytesEncoder:
    torch.manual_seed(1)
    return BytesEncoder(width=nests.WIDTH, heads=2, layers=1, max_tokens=32, pad=pad)


def drawn(nest: NestedUNet, text: Any, captions: list[str] = CAPTIONS, **given: Any) -> list[Any]:
    how = given.pop("drawing", drawing)
    return draw(nest, text, diffusion, how, resolutions=SIZES, captions=captions, **given)


def off(one: Any, other: Any) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("pad", ["batch", "exact", "max"])
@pytest.mark.parametrize("masked", [True, False])
@settings(max_examples=5)
@given(batch=st.integers(1, 6), negative=st.sampled_from(["", "blue and round"]))
def test_a_picture_does_not_depend_on_its_batch_mates(masked: bool, pad: str, batch: int, negative: str):
    nest, text = nest_of(masked=masked), encoder(pad)
    together = drawn(nest, text, batch=batch, negative=negative)
    for i, caption in enumerate(CAPTIONS):
        alone = drawn(nest, text, [caption], seed=i, negative=negative)[0]
        assert off(together[i], alone) < 1e-3 * max(float(x.abs().max()) for x in alone), caption


def test_a_network_that_looks_at_padding_sees_the_padded_length():
    """The promise above is not kept by chance: padding does change this network's pictures."""
    assert nest_of(masked=False).sees_padding
    assert not nest_of(masked=True).sees_padding
    short, long = (drawn(nest_of(masked=False), encoder(pad), ["a"])[0] for pad in ("exact", "max"))
    assert off(short, long) > 0.01 * float(short[0].abs().max())
    short, long = (drawn(nest_of(masked=True), encoder(pad), ["a"])[0] for pad in ("exact", "max"))
    assert off(short, long) < 1e-3 * float(short[0].abs().max())


def test_the_text_of_the_released_sampler_is_as_long_as_prompt_and_negative_prompt_need():
    seen: list[tuple[int, int]] = []
    nest = nest_of(masked=False)
    forward = nest.forward

    def watch(z: Any, t: Any, text: Any = None, **told: Any) -> Any:
        seen.append(tuple(text.features.shape[:2]))
        return forward(z, t, text=text, **told)

    nest.forward = watch  # type: ignore[method-assign]
    drawn(nest, encoder(), ["abc", "abcde", "xyz"], negative="1234", batch=3)
    # two pictures with both their rows, then one; each text has a token for its start
    assert seen == [(4, 5)] * 2 + [(2, 6)] * 2


@pytest.mark.parametrize("masked", [True, False])
def test_a_caption_is_encoded_once_a_batch(masked: bool):
    seen: list[list[str]] = []
    text = encoder()

    def encode(captions: Any) -> Any:
        seen.append(list(captions))
        return text(captions)

    drawn(nest_of(masked=masked), encode, ["a", "b", "a", "a", "b"], batch=4)
    twice = [["a", ""], ["b", ""], ["b", ""]]
    assert seen == ([[""], ["a", "b"], ["b"]] if masked else twice)


@pytest.mark.parametrize("masked", [True, False])
def test_guidance_leads_away_from_the_negative_text(masked: bool):
    """Away from its own caption it goes nowhere; what it leads away from is that text's own picture."""
    nest, text = nest_of(masked=masked), encoder()
    for caption in ("a ring", "a star"):
        same = drawn(nest, text, [caption], negative=caption)[0]
        assert off(same, drawn(nest, text, [caption], drawing=unguided)[0]) < 1e-3
    away, empty = (drawn(nest, text, ["a ring"], negative=negative)[0] for negative in ("a star", ""))
    assert off(away, empty) > 0.01
    default = drawn(nest, text, ["a ring"])[0]
    assert off(default, empty) == 0
    zero = Drawing(ddim, uniform_t, none, (CFG(0.0),), steps=2)  # the negative text's own answer
    only = drawn(nest, text, ["a ring"], negative="a star", drawing=zero)[0]
    assert off(only, drawn(nest, text, ["a star"], drawing=unguided)[0]) < 1e-3


def test_a_class_can_be_led_away_from():
    nest = nest_of(masked=True)
    torch.manual_seed(0)
    text = ClassEncoder(width=nests.WIDTH, names=("cat", "dog"))
    away, empty = (drawn(nest, text, ["cat"], negative=negative)[0] for negative in ("dog", ""))
    assert off(away, empty) > 1e-3


@pytest.mark.parametrize("masked", [True, False])
def test_stored_features_give_the_pictures_of_their_captions(masked: bool, tmp_path: Path):
    nest, text = nest_of(masked=masked), encoder("max")
    with torch.no_grad():
        features, mask = text(CAPTIONS)
        negative, negative_mask = text(["blue"])
    away = {"negative_features": negative, "negative_mask": negative_mask}
    save_file({"features": features, "mask": mask, **away}, tmp_path / "text.safetensors")
    conditions = read(tmp_path / "text.safetensors")
    expected = drawn(nest, text, negative="blue", batch=3)
    for batch in (2, 6):
        got = drawn(nest, None, [], conditions=conditions, batch=batch)
        assert len(got) == len(CAPTIONS)
        assert all(off(a, b) < 1e-3 for a, b in zip(got, expected, strict=True))


def test_where_lengths_differ_the_condition_alone_is_as_long_as_with_guidance():
    nest = nest_of(masked=False)
    cond, uncond = nests.draw(1, 3, nests.WIDTH).float(), nests.draw(1, 7, nests.WIDTH, seed=1).float()
    conditions = Conditions(cond, None, uncond, None)
    plain, guided = (
        draw(nest, None, diffusion, how, resolutions=SIZES, conditions=conditions)[0]
        for how in (unguided, Drawing(ddim, uniform_t, none, (CFG(1.0 + 1e-9),), steps=2))
    )
    assert off(plain, guided) < 1e-3


@pytest.mark.parametrize("pad", ["exact", "max"])
def test_between_two_prompts_the_ends_are_their_pictures(pad: str):
    nest, text = nest_of(masked=True), encoder(pad)
    with torch.no_grad():
        ((_, ends),) = encoded(text, ["a red ring", "a star"], "blue", batch=2, apart=False)
    way = between(ends, [0.0, 0.5, 0.9, 1.0])
    got = drawn(nest, None, [], conditions=way, seeds=[3] * 4)
    expected = drawn(nest, text, ["a red ring", "a star"], seeds=[3, 3], negative="blue")
    assert off(got[0], expected[0]) < 1e-3
    assert off(got[3], expected[1]) < 1e-3
    assert off(got[1], got[0]) > 1e-2
    assert off(got[2], got[3]) > 1e-2


def test_between_texts_of_a_length_features_change_little_by_little():
    with torch.no_grad():
        ((_, ends),) = encoded(encoder(), ["a ring", "a star"], "", batch=2, apart=False)
    way = between(ends, [w / 4 for w in range(5)]).cond
    assert way is not None
    torch.testing.assert_close(way[1:] - way[:-1], ((way[4] - way[0]) / 4).expand(4, -1, -1))


def test_a_way_between_texts_needs_two_and_stays_on_it():
    ends = Conditions(ROWS, MASK)
    with pytest.raises(ValueError, match="expected two texts to go between, got 0"):
        between(Conditions(), [0.5])
    with pytest.raises(ValueError, match=r"expected weights in \[0, 1\], .*, got 1\.5"):
        between(ends, [0.0, 1.5])
    way = between(ends._replace(cond_mask=None), [0.25])
    assert way.cond_mask is not None
    assert way.cond_mask.all()
    assert way.uncond is None


def test_edits_hold_for_every_picture_of_every_batch():
    nest, text = nest_of(masked=True), encoder()
    low = torch.rand(1, 3, 8, 8)
    for x in drawn(nest, text, batch=4, known=known_low(low, SIZES)):
        torch.testing.assert_close(x[0], low[0], rtol=0, atol=1e-5)
    start = Start((low, torch.rand(1, 3, 16, 16)), 0.0)
    assert all(off(x, (row[0] for row in start.pictures)) == 0 for x in drawn(nest, text, start=start))
    middle = drawn(nest, text, ["a", "a"], seeds=[Between(4, 5, 1.0), 4])
    assert off(middle[0], drawn(nest, text, ["a"], seed=5)[0]) < 1e-3
    with pytest.raises(ValueError, match="expected a seed for each of 2 pictures, got 1"):
        drawn(nest, text, ["a", "b"], seeds=[1])


MASK = torch.ones(2, 5, dtype=torch.bool)
ROWS = torch.zeros(2, 5, 4)


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        ({"feature": ROWS},
         "unknown tensor 'feature' (known: features, mask, negative_features, negative_mask)"),
        ({"mask": MASK}, "has mask without features"),
        ({"negative_features": ROWS}, "has no tensor 'features'"),
        ({"features": ROWS[0]}, "expected features (rows, tokens, width), floating, got (5, 4) float32"),
        ({"features": ROWS.int()}, "expected features (rows, tokens, width), floating, got (2, 5, 4) int32"),
        ({"features": ROWS, "mask": MASK[:1]},
         "expected mask (2, 5), as features are (2, 5, 4), got (1, 5)"),
        ({"features": ROWS, "negative_features": ROWS.repeat(2, 1, 1)},
         "expected negative_features (1 or 2, L, 4), as features are (2, 5, 4), got (4, 5, 4)"),
        ({"features": ROWS, "negative_features": ROWS[..., :3].contiguous()},
         "expected negative_features (1 or 2, L, 4), as features are (2, 5, 4), got (2, 5, 3)"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_one_line(tmp_path: Path, tensors: dict[str, Any], line: str):
    file = tmp_path / "text.safetensors"
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"text\.safetensors: ") as error:
        read(file)
    assert str(error.value) == f"{file}: {line}"


def test_what_is_no_file_is_one_line(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"123")
    for name in ("x", "none"):
        with pytest.raises(ValueError, match="cannot be read as safetensors: "):
            read(tmp_path / name)
