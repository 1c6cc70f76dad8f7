"""Decoding, cropping and resizing of every kind of picture that datasets hold."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mdmkit.data.pictures import as_size, decode, fit, shrink, square_name

sides = st.integers(1, 40)


def _encode(picture: Image.Image, format: str = "png", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def _noise(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(
    height=sides,
    width=sides,
    h=sides,
    w=sides,
    seed=st.integers(0, 99),
    crop=st.sampled_from(["center", "random"]),
)
def test_fit_gives_any_shape_from_any_shape(height, width, h, w, seed, crop):
    image = fit(_noise(seed, height, width), (h, w), crop=crop, key=(seed, "a"))
    assert image.shape == (h, w, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, fit(_noise(seed, height, width), (h, w), crop=crop, key=(seed, "a")))


@given(height=sides, width=sides, seed=st.integers(0, 99))
def test_a_picture_of_the_right_size_is_untouched(height, width, seed):
    picture = _noise(seed, height, width)
    assert np.array_equal(fit(picture, (height, width)), np.asarray(picture))


@given(
    h=st.integers(1, 12),
    w=st.integers(1, 12),
    extra=st.integers(0, 12),
    tall=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_crop_without_resizing_is_a_part_of_the_picture(h, w, extra, tall, seed):
    height, width = (h + extra, w) if tall else (h, w + extra)
    picture = _noise(seed, height, width)
    image = fit(picture, (h, w), crop="random", key=(seed,))
    pixels = np.asarray(picture)
    parts = [pixels[i : i + h, :w] if tall else pixels[:h, i : i + w] for i in range(extra + 1)]
    assert any(np.array_equal(image, part) for part in parts)


def test_random_crops_reach_both_ends_and_the_centre_crop_is_central():
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:] = np.arange(12)[None, :, None]
    picture = Image.fromarray(pixels)
    lefts = {int(fit(picture, (4, 4), crop="random", key=(0, i))[0, 0, 0]) for i in range(200)}
    assert lefts == set(range(9))
    assert fit(picture, (4, 4))[0, :, 0].tolist() == [4, 5, 6, 7]


def test_half_of_the_pictures_are_flipped_by_key():
    picture = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    plain = np.asarray(picture)
    flipped = [not np.array_equal(fit(picture, (2, 2), flip=True, key=(i,)), plain) for i in range(400)]
    assert 150 < sum(flipped) < 250
    assert np.array_equal(fit(picture, (2, 2), flip=False, key=(flipped.index(True),)), plain)
    assert np.array_equal(fit(picture, (2, 2), flip=True, key=(flipped.index(True),)), plain[:, ::-1])


def test_resizing_is_antialiased():
    fine = np.zeros((256, 256, 3), np.uint8)
    fine[:, ::2] = 255  # stripes too fine for 16 pixels: their mean remains
    assert np.abs(fit(Image.fromarray(fine), (16, 16)).astype(int) - 127.5).max() < 8


@given(h=st.integers(1, 6), w=st.integers(1, 6), down=st.integers(1, 5), across=st.integers(1, 5))
def test_shrink_is_the_mean_over_blocks(h, w, down, across):
    image = np.asarray(_noise(h * w, h * down, w * across))
    mean = image.reshape(h, down, w, across, 3).astype(np.float64).mean((1, 3))
    assert np.abs(shrink(image, (h, w)) - mean).max() <= 0.5


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(mode):
    grey = np.tile(np.linspace(0, 255, 16).round().astype(np.uint8), (8, 1))
    if mode == "I;16":
        data = _encode(Image.fromarray(grey.astype(np.uint16) * 257))
    else:
        format = "tiff" if mode in ("CMYK", "YCbCr") else "png"
        data = _encode(Image.fromarray(grey).convert("RGB").convert(mode), format)
    picture, size = decode(data)
    assert (picture.mode, picture.size, size) == ("RGB", (16, 8), (8, 16))
    if mode not in ("1", "P"):  # two colours, and a palette of 216
        assert np.abs(np.asarray(picture)[..., 0].astype(int) - grey).max() <= 8


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 128))
    picture, _ = decode(_encode(clear))
    assert np.asarray(picture)[0].tolist() == [[255, 255, 255], [255, 127, 127]]
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([9, 9, 9, 0, 0, 255])
    palette.putpixel((0, 0), 0)
    picture, _ = decode(_encode(palette, transparency=0))
    assert np.asarray(picture)[0].tolist() == [[255, 255, 255], [0, 0, 255]]


def test_exif_orientation_turns_the_picture_and_its_size():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be turned by 90 degrees
    upright = np.zeros((30, 20, 3), np.uint8)
    upright[:15] = 255
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    picture, size = decode(_encode(stored, "jpeg", exif=exif, quality=95))
    assert (picture.size, size) == ((20, 30), (30, 20))
    assert np.asarray(picture)[:12].min() > 200
    assert np.asarray(picture)[18:].max() < 50


def test_a_large_jpeg_is_decoded_small_but_keeps_its_size():
    ramp = np.tile(np.linspace(0, 255, 640).astype(np.uint8)[None, :, None], (480, 1, 3))
    data = _encode(Image.fromarray(ramp), "jpeg", quality=95)
    whole, size = decode(data)
    small, same = decode(data, at_least=64)
    assert size == same == (480, 640)
    assert small.size == (160, 120)
    difference = fit(whole, (32, 32)).astype(int) - fit(small, (32, 32)).astype(int)
    assert np.abs(difference).max() <= 3


def test_an_animation_gives_its_first_frame():
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    picture, _ = decode(_encode(red, "gif", save_all=True, append_images=[blue]))
    assert np.asarray(picture)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n then nothing"])
def test_broken_data_is_an_error(data):
    with pytest.raises((OSError, ValueError, SyntaxError)):
        decode(data)


def test_a_truncated_picture_is_an_error():
    data = _encode(_noise(0, 40, 40))
    with pytest.raises((OSError, ValueError, SyntaxError)):
        decode(data[: len(data) // 2])


def test_names_and_sizes():
    assert as_size(8) == (8, 8)
    assert square_name((64, 64)) == "64"
    assert square_name((48, 64)) == "48x64"
    with pytest.raises(ValueError, match="at least 1 pixel"):
        as_size((0, 4))
    with pytest.raises(ValueError, match='"center" or "random", got \'left\''):
        fit(Image.new("RGB", (2, 2)), (1, 1), crop="left")
    with pytest.raises(ValueError, match="floating-point"):
        decode(_encode(Image.new("F", (2, 2)), "tiff"))
