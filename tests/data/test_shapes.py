"""The procedural scenes: true to their captions, to their key, and to themselves at every resolution."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.data.scene_captions import parse, write
from mdmkit.data.scene_drawing import OUTLINES, cover, draw
from mdmkit.data.scenes import (
    COLOURS,
    GAP,
    POSITIONS,
    RADII,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Relation,
    Scene,
    Stated,
    Statement,
    holds,
    stands,
)
from mdmkit.data.shapes import Shapes, held_out_pairs, scene_of
from mdmkit.streams import stream

positions = st.integers(0, 10**9)
splits = st.sampled_from(["train", "held_out", "all"])
resolutions = st.tuples(st.integers(8, 80), st.integers(8, 80))


def shapes(**settings) -> Shapes:
    return Shapes(**{"seed": 3, "resolution": (32, 32), **settings})


def pooled(picture: np.ndarray, factor: int) -> np.ndarray:
    height, width, _ = picture.shape
    return picture.reshape(height // factor, factor, width // factor, factor, 3).astype(float).mean((1, 3))


def stated_things(**fixed) -> st.SearchStrategy[Stated]:
    choices = {
        "shape": st.sampled_from(SHAPES),
        "colour": st.none() | st.sampled_from(list(COLOURS)),
        "size": st.none() | st.sampled_from(SIZES),
        "texture": st.none() | st.sampled_from(TEXTURES),
        "position": st.none() | st.sampled_from(list(POSITIONS)),
    }
    return st.builds(Stated, **{**choices, **fixed})


@st.composite
def statements(draw_from: st.DrawFn) -> Statement:
    things = tuple(draw_from(st.lists(stated_things(), min_size=1, max_size=3)))
    related = draw_from(st.booleans())
    names = [draw_from(st.sampled_from(list(RELATIONS))) for _ in things[1:]] if related else []
    return Statement(things, tuple(Relation(0, name, i + 1) for i, name in enumerate(names)))


@given(positions, resolutions)
def test_a_sample_is_a_function_of_seed_and_position(position, resolution):
    first, again = shapes(resolution=resolution), shapes(resolution=resolution)
    again.sample(position + 1)  # whatever was asked for before
    a, b = first.sample(position), again.sample(position)
    assert a.image.shape == (*resolution, 3)
    assert a.image.dtype == np.uint8
    assert np.array_equal(a.image, b.image)
    assert (a.caption, a.key, a.size) == (b.caption, b.key, resolution)
    assert shapes(seed=4).scene(position) != first.scene(position)


def test_positions_differ():
    dataset = shapes()
    assert len({dataset.sample(i).image.tobytes() for i in range(50)}) == 50
    assert len({dataset.sample(i).key for i in range(50)}) == 50


@given(positions, splits, st.sampled_from(["plain", "varied"]))
def test_what_a_caption_says_is_true(position, split, wording):
    dataset = shapes(split=split, wording=wording)
    scene = dataset.scene(position)
    said = parse(scene.caption)
    assert said == scene.stated
    assert len(said.objects) == len(scene.objects)
    for thing, words in zip(scene.objects, said.objects, strict=True):
        assert (thing.shape, thing.colour) == (words.shape, words.colour)
        assert words.size in (None, thing.size)
        assert words.texture in (None, thing.texture)
        assert words.position is None or stands(words.position, (thing.x, thing.y))
        middle = RADII[len(scene.objects)]
        assert min(middle, key=lambda size: abs(np.log(thing.radius / middle[size]))) == thing.size
    for relation in said.relations:
        first, second = scene.objects[relation.first], scene.objects[relation.second]
        assert holds(relation.name, (first.x, first.y), (second.x, second.y))


@given(positions)
def test_objects_lie_inside_and_apart(position):
    things = shapes(objects=(2, 3)).scene(position).objects
    for thing in things:
        assert thing.radius <= min(thing.x, 1 - thing.x, thing.y, 1 - thing.y)
    for a, b in itertools.combinations(things, 2):
        assert np.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + GAP - 1e-12
        assert (a.colour, a.shape) != (b.colour, b.shape)


@given(statements(), st.lists(st.floats(0, 0.999), max_size=12))
def test_captions_are_read_as_they_were_written(statement, choices):
    assert parse(write(statement)) == statement
    assert parse(write(statement, choices)) == statement


def test_a_caption_in_full():
    said = parse("a small red star left of a large striped blue circle")
    assert said == Statement(
        (Stated("star", "red", "small"), Stated("circle", "blue", "large", "striped")),
        (Relation(0, "left of", 1),),
    )
    assert write(said) == "a small red star left of a large striped blue circle"
    assert parse("Big orange striped ring, in the middle.").objects[0].position == "centre"


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a red cat", "'cat'"),
        ("", "expected a shape"),
        ("a red", "expected a shape"),
        ("left of a red star", "expected an object before 'left of'"),
        ("a red blue star", "expected one colour an object, came 'red' and 'blue'"),
        ("a red star left of", "expected a shape"),
        ("a redstar", "'redstar'"),
    ],
)
def test_captions_that_cannot_be_read(caption, message):
    with pytest.raises(ValueError, match=message):
        parse(caption)


def test_held_out_pairs_are_never_trained_on():
    held_out = held_out_pairs(tuple(COLOURS), SHAPES)
    assert len(held_out) == len(SHAPES)
    assert {shape for _, shape in held_out} == set(SHAPES)
    assert {colour for colour, _ in held_out} == set(COLOURS)

    def pairs(dataset, only_first=False):
        scenes = [dataset.scene(i).objects for i in range(300)]
        return {(o.colour, o.shape) for objects in scenes for o in objects[: 1 if only_first else None]}

    train = shapes()
    assert pairs(train) == {(c, s) for c in COLOURS for s in SHAPES} - held_out
    assert pairs(shapes(split="held_out"), only_first=True) == held_out
    assert pairs(shapes(split="all")) & held_out

    firsts = [parse(caption).objects[0] for caption in train.captions(60, held_out=True)]
    assert {(o.colour, o.shape) for o in firsts} <= held_out
    firsts = [parse(caption).objects[0] for caption in train.captions(60)]
    assert not {(o.colour, o.shape) for o in firsts} & held_out


def test_settings_limit_what_is_drawn():
    dataset = shapes(
        objects=(2, 2), shapes=("star", "ring"), colours=("red", "blue", "black"), sizes=("large",),
        textures=("dotted",), relations=False, wording="plain", split="all",
    )  # fmt: skip
    for i in range(40):
        scene = dataset.scene(i)
        assert not scene.stated.relations
        for thing in scene.objects:
            assert thing.shape in ("star", "ring")
            assert thing.colour in ("red", "blue", "black")
            assert (thing.size, thing.texture) == ("large", "dotted")
    assert all(
        shapes(objects=(1, 1), positions=False).scene(i).stated.objects[0].position is None for i in range(40)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shapes": ("circle", "blob")}, "expected shapes out of circle, .* came"),
        ({"colours": ()}, "expected colours out of"),
        ({"sizes": ("small", "small")}, "each once"),
        ({"split": "test"}, "expected split to be one of train, held_out, all, came 'test'"),
        ({"objects": (0, 2)}, "within 1 to 3"),
        ({"objects": (3, 2)}, "within 1 to 3"),
        ({"shapes": ("star",), "colours": ("red",)}, 'take split = "all"'),
        ({"resolution": (0, 4)}, "at least 1 x 1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        shapes(**settings)


@given(positions, st.sampled_from([(16, 16), (16, 32), (24, 16)]), st.sampled_from(["light", "varied"]))
def test_a_small_picture_is_the_pooled_large_one(position, resolution, background):
    scene = shapes(background=background).scene(position)
    small = draw(scene, resolution).astype(float)
    for factor in (2, 4):
        large = pooled(draw(scene, (resolution[0] * factor, resolution[1] * factor)), factor)
        assert np.abs(small - large).mean() < 0.5
        assert np.abs(small - large).max() < 24


@given(positions, st.sampled_from(["light", "varied"]))
def test_a_picture_is_close_to_one_of_many_samples_a_pixel(position, background):
    scene = shapes(background=background).scene(position)
    for side in (32, 64):
        fine = pooled(draw(scene, (512, 512)), 512 // side)
        assert np.abs(draw(scene, (side, side)) - fine).mean() < 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_lie_in_the_unit_circle_and_are_distances(shape):
    side = 401
    grid = np.linspace(-1.3, 1.3, side)
    u, v = np.meshgrid(grid, grid)
    distance = OUTLINES[shape](u, v)
    assert np.hypot(u, v)[distance < 0].max() <= 1.06
    # the slope across the outline is one, so that an edge is one pixel wide; at corners it may be less
    slope = np.hypot(*np.gradient(distance, grid[1] - grid[0]))[np.abs(distance) < 0.02]
    assert slope.mean() == pytest.approx(1, abs=0.03)
    assert np.percentile(slope, 99) < 1.02


def test_shapes_are_distinguishable_when_large_at_16():
    size = (16, 16)
    radius = RADII[1]["large"] * 16
    drawn = {s: cover(s, "solid", (8.2, 7.9), radius, (0, 16, 0, 16), 4)[0] for s in SHAPES}
    for a, b in itertools.combinations(SHAPES, 2):
        union = np.maximum(drawn[a], drawn[b]).sum()
        assert np.abs(drawn[a] - drawn[b]).sum() > 0.12 * union, (a, b, size)


@given(positions, st.sampled_from(TEXTURES[1:]))
def test_textures_show_both_tones(position, texture):
    scene = shapes(objects=(1, 1), textures=(texture,), sizes=("large",), resolution=(64, 64)).scene(position)
    picture = draw(scene, (64, 64)).reshape(-1, 3).astype(int)
    for tone in COLOURS[scene.objects[0].colour]:
        assert (np.abs(picture - np.array(tone)).max(-1) <= 2).sum() > 10


@given(stated_things(size=st.sampled_from(["small", "medium"])), st.integers(0, 99))
def test_a_true_scene_of_one_object(thing, seed):
    scene = scene_of(stream(seed), Statement((thing,)))
    (found,) = scene.objects
    assert thing.colour in (None, found.colour)
    assert (thing.shape, thing.size) == (found.shape, found.size)
    assert thing.position is None or stands(thing.position, (found.x, found.y))
    assert parse(scene.caption) == scene.stated


def test_a_true_scene_of_many_captions():
    for caption in shapes(objects=(2, 3)).captions(60):
        scene: Scene = scene_of(stream(0), parse(caption))
        for relation in scene.stated.relations:
            first, second = scene.objects[relation.first], scene.objects[relation.second]
            assert holds(relation.name, (first.x, first.y), (second.x, second.y))


def test_no_scene_where_none_is_true():
    for caption in (
        "a large red star left of a large blue ring and right of a large green circle",
        "a red star, a red ring, a red cross and a blue star",
    ):
        with pytest.raises(ValueError, match=r"no room|expected 1 to 3"):
            scene_of(stream(0), parse(caption))


def test_varied_backgrounds_stay_pale_and_vary():
    dataset = shapes(background="varied")
    corners = np.stack([dataset.sample(i).image[[0, 0, -1, -1], [0, -1, 0, -1]] for i in range(30)])
    assert corners.min() >= 210
    assert corners.std(axis=0).min() > 3
