"""The procedural clips: true to their captions at every moment, to their key, at every number of frames."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.data.moving import (
    DIRECTIONS,
    GROWTH,
    MEETINGS,
    MOTIONS,
    ROUND,
    SPEEDS,
    TURN,
    Happening,
    MotionStatement,
    MovingScene,
)
from mdmkit.data.moving_captions import parse, write
from mdmkit.data.moving_shapes import MovingShapes, film, held_out_motions, moving_scene_of, times
from mdmkit.data.scene_drawing import paint
from mdmkit.data.scenes import COLOURS, GAP, MARGIN, SHAPES, SIZES, TEXTURES, SceneObject, Stated
from mdmkit.data.shapes import PLAIN
from mdmkit.streams import stream

positions = st.integers(0, 10**9)
ALONE = tuple(motion for motion in MOTIONS if motion not in MEETINGS)


def moving(**settings) -> MovingShapes:
    return MovingShapes(**{"seed": 3, "resolution": (32, 32), "frames": 8, **settings})


def things() -> st.SearchStrategy[Stated]:
    return st.builds(
        Stated,
        shape=st.sampled_from(SHAPES),
        colour=st.none() | st.sampled_from(list(COLOURS)),
        size=st.none() | st.sampled_from(SIZES),
        texture=st.none() | st.sampled_from(TEXTURES),
        position=st.none(),
    )


@st.composite
def statements(draw: st.DrawFn) -> MotionStatement:
    kind = draw(st.sampled_from(["picture", "one", "both", "then", "alone then", "meet"]))
    objects = tuple(draw(things()) for _ in range(1 if kind in ("one", "alone then") else 2))

    def event(thing: int) -> Happening:
        motion = draw(st.sampled_from(ALONE))
        speed = draw(st.sampled_from([None, "slow", "fast"])) if motion in DIRECTIONS else None
        return Happening(thing, motion, speed)

    if kind == "picture":
        return MotionStatement(objects)
    if kind == "meet":
        return MotionStatement(objects, (Happening(0, draw(st.sampled_from(MEETINGS))),))
    first = event(0)
    if kind == "one":
        return MotionStatement(objects, (first,))
    return MotionStatement(objects, (first, event(len(objects) - 1)), ordered=kind != "both")


@given(statements(), st.lists(st.floats(0, 0.999), max_size=16))
def test_captions_are_read_as_they_were_written(statement, choices):
    assert parse(write(statement)) == statement
    assert parse(write(statement, choices)) == statement


def test_captions_in_full():
    said = parse("First a small red circle rolls left slowly, then a blue square falls.")
    small, blue = Stated("circle", "red", "small"), Stated("square", "blue")
    events = (Happening(0, "left", "slow"), Happening(1, "down"))
    assert said == MotionStatement((small, blue), events, ordered=True)
    assert write(said) == "a small red circle moves left slowly, then a blue square moves down"
    assert parse("a blue square sinks after a little red circle slowly goes to the left") == said
    assert parse("a small red circle slides left slowly before a blue square moves down") == said
    assert parse("a red ring moves upwards and to the right, then it grows") == MotionStatement(
        (Stated("ring", "red"),), (Happening(0, "up right"), Happening(0, "grow")), ordered=True
    )
    assert parse("a red star and a blue star bump into each other and bounce apart").events == (
        Happening(0, "bounce"),
    )
    assert parse("a small red circle").events == ()


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a red cat moves left", "'cat'"),
        ("", "expected a shape"),
        ("moves left", "expected a shape"),
        ("a red moves left", "expected a shape"),
        ("a red star moves", "one thing"),
        ("a red star left", "one thing"),
        ("a red star moves left right", "one thing"),
        ("a red star turns", "one thing"),
        ("a red star moves clockwise", "one thing"),
        ("a red star grows slowly", "one thing"),
        ("a red star grows shrinks", "one thing"),
        ("a red star collide and bounce", "came 1 that do"),
        ("a red star and a blue ring move", "'move'"),
        ("a red star and a blue ring moves left", "came 2 that do"),
        ("a red star moves left, then a blue ring", "do 'nothing'"),
        ("then a red star moves left", "two things to happen"),
        ("a red star grows, then it shrinks, then it grows", "two things to happen"),
        ("a red blue star grows", "expected one colour an object, came 'red' and 'blue'"),
        ("a red star and a blue ring collide and stop, then a red cross grows", "a collision alone"),
    ],
)
def test_captions_that_cannot_be_read(caption, message):
    with pytest.raises(ValueError, match=message):
        parse(caption)


@given(positions, st.sampled_from([(16, 16), (24, 16), (16, 40)]))
def test_a_sample_is_a_function_of_seed_and_position(position, resolution):
    first, again = moving(resolution=resolution), moving(resolution=resolution)
    again.sample(position + 1)  # whatever was asked for before
    a, b = first.sample(position), again.sample(position)
    assert a.image.shape == (8, *resolution, 3)
    assert a.image.dtype == np.uint8
    assert np.array_equal(a.image, b.image)
    assert (a.caption, a.key, a.size, a.fps) == (b.caption, b.key, resolution, 4.0)
    assert moving(seed=4, resolution=resolution).scene(position) != first.scene(position)


def test_positions_differ():
    dataset = moving()
    assert len({dataset.sample(i).image.tobytes() for i in range(40)}) == 40
    assert len({dataset.sample(i).key for i in range(40)}) == 40


@given(positions, st.integers(1, 4), st.integers(2, 5))
def test_a_clip_is_every_nth_frame_of_a_longer_one(position, n, frames):
    dataset = moving()
    short = dataset.filmed(position, (16, 16), frames)
    long = dataset.filmed(position, (16, 16), n * frames)
    assert np.array_equal(short.image, long.image[::n])
    assert short.fps is not None
    assert long.fps == n * short.fps


@given(positions)
def test_pictures_are_moments_of_their_clips(position):
    picture, one = moving(frames=None).sample(position), moving(frames=1).sample(position)
    assert picture.image.shape == (32, 32, 3)
    assert one.image.shape == (1, 32, 32, 3)
    assert np.array_equal(one.image[0], picture.image)
    assert picture.fps is None
    assert picture.caption == moving().sample(position).caption


def test_pictures_are_not_all_of_the_beginning():
    dataset = moving(frames=None, motions=("left", "right"), objects=(1, 1))
    begins = [film(dataset.scene(i), (32, 32), [0.0])[0] for i in range(20)]
    assert sum(np.array_equal(dataset.sample(i).image, begins[i]) for i in range(20)) < 4


def seen_motion(scene: MovingScene, thing: int, start: float, stop: float) -> tuple[str, float]:
    """What the truth shows of an object in a span of time, and how many shorter sides a clip it goes."""
    a, b = scene.courses[thing].at(start), scene.courses[thing].at(stop)
    way = math.hypot(b.x - a.x, b.y - a.y)
    found = []
    if way > 1e-9:
        unit = (b.x - a.x) / way, (b.y - a.y) / way
        found.append(max(DIRECTIONS, key=lambda name: np.dot(DIRECTIONS[name], unit)))
        assert np.dot(DIRECTIONS[found[0]], unit) > 1 - 1e-9
    if abs(b.radius / a.radius - 1) > 1e-9:
        found.append("grow" if b.radius > a.radius else "shrink")
        assert b.radius / a.radius == pytest.approx(GROWTH[found[-1]])
    if abs(b.angle - a.angle) > 1e-9:
        found.append("clockwise" if b.angle > a.angle else "anticlockwise")
        assert math.radians(85) < abs(b.angle - a.angle) < math.radians(115)
    assert len(found) <= 1
    return (found[0] if found else "still"), way / (stop - start)


@given(positions, st.sampled_from(["train", "held_out", "all"]), st.sampled_from(["plain", "varied"]))
def test_what_a_caption_says_is_true(position, split, wording):
    scene = moving(split=split, wording=wording).scene(position)
    said = parse(scene.caption)
    assert said == scene.stated
    for thing, words in zip(scene.objects, said.objects, strict=True):
        assert (thing.shape, thing.colour) == (words.shape, words.colour)
        assert words.size in (None, thing.size)
        assert words.texture in (None, thing.texture)
    if said.events[0].motion in MEETINGS:
        a, b = scene.courses
        gaps = [math.hypot(a.at(t).x - b.at(t).x, a.at(t).y - b.at(t).y) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
        assert gaps[0] > gaps[1] > gaps[2]
        if said.events[0].motion == "stop":
            assert gaps[3:] == pytest.approx([gaps[2]] * 2)
        else:
            assert gaps[4] == pytest.approx(gaps[0])
            assert gaps[4] > gaps[3] > gaps[2]
        return
    for event, (start, stop) in zip(said.events, said.spans(), strict=True):
        motion, speed = seen_motion(scene, event.thing, start, stop)
        assert motion == event.motion
        if event.speed:
            assert event.speed == min(SPEEDS, key=lambda name: abs(math.log(speed / SPEEDS[name])))
    if said.ordered and len(said.objects) == 2:  # the other one waits
        assert seen_motion(scene, 1, 0.0, 0.5)[0] == seen_motion(scene, 0, 0.5, 1.0)[0] == "still"


@given(positions, st.sampled_from([(32, 32), (24, 48), (48, 32)]))
def test_objects_stay_inside_and_apart(position, resolution):
    scene = moving(resolution=resolution, objects=(2, 2)).scene(position)
    meet = scene.stated.events[0].motion in MEETINGS
    for time in np.linspace(0, 1, 41).tolist():
        poses = [course.at(time) for course in scene.courses]
        for pose in poses:
            for centre, side in ((pose.x, scene.box[0]), (pose.y, scene.box[1])):
                assert centre - pose.radius >= MARGIN - 1e-9
                assert centre + pose.radius <= side - MARGIN + 1e-9
        a, b = poses
        if not meet:
            assert math.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + GAP - 0.01
    assert scene.objects[0].colour != scene.objects[1].colour


@pytest.mark.parametrize("motion", MEETINGS)
@pytest.mark.parametrize("pair", list(itertools.product(SHAPES, SHAPES))[::5])
def test_what_meets_touches_and_does_not_overlap(motion, pair):
    said = MotionStatement((Stated(pair[0], "red"), Stated(pair[1], "blue")), (Happening(0, motion),))
    for seed in range(4):
        scene = moving_scene_of(stream(seed), said)
        a, b = (
            paint((thing,), (PLAIN, PLAIN, (0.0, 0.0)), (256, 256)).min(-1) < 100 for thing in scene.at(0.5)
        )
        assert not (a & b).sum() > 6
        axis = 0 if abs(scene.objects[0].y - scene.objects[1].y) < 1e-9 else 1
        (a_from, a_to), (b_from, b_to) = (
            (np.nonzero(mask.any(axis))[0].min(), np.nonzero(mask.any(axis))[0].max()) for mask in (a, b)
        )
        assert min(abs(b_from - a_to), abs(a_from - b_to)) <= 5  # pixels of 256; tips are thin


def test_held_out_pairs_are_never_trained_on():
    held_out = held_out_motions(MOTIONS, SHAPES)
    assert len(held_out) == len(SHAPES)
    assert {shape for _, shape in held_out} == set(SHAPES)

    def pairs(dataset: MovingShapes, first: bool = False) -> set[tuple[str, str]]:
        found = set()
        for i in range(600):
            said = dataset.scene(i).stated
            events = [e for e in said.events if e.motion not in MEETINGS]
            found |= {(e.motion, said.objects[e.thing].shape) for e in events[: 1 if first else None]}
        return found

    possible = {(m, s) for m in ALONE for s in SHAPES if not (m in TURN and s in ROUND)}
    assert pairs(moving()) == possible - held_out
    assert pairs(moving(split="held_out"), first=True) == held_out
    assert pairs(moving(split="all")) & held_out
    firsts = [parse(caption) for caption in moving().captions(40, held_out=True)]
    assert {(said.events[0].motion, said.objects[0].shape) for said in firsts} <= held_out


def test_settings_limit_what_is_drawn():
    dataset = moving(
        objects=(2, 2), motions=("left", "grow", "still"), speeds=("slow",), sequences=False, split="all",
        shapes=("star", "ring"), colours=("red", "blue"), sizes=("medium",), textures=("dotted",),
        wording="plain",
    )  # fmt: skip
    for i in range(40):
        scene = dataset.scene(i)
        assert not scene.stated.ordered
        assert all(event.motion in ("left", "grow", "still") for event in scene.stated.events)
        assert all(event.speed is None for event in scene.stated.events)  # there is but one
        for thing, event in zip(scene.objects, scene.stated.events, strict=True):
            assert thing.size == ("small" if event.motion == "grow" else "medium")
            assert (thing.texture, thing.shape in ("star", "ring")) == ("dotted", True)
    only = moving(motions=("bounce", "stop"), objects=(2, 2))
    assert {only.scene(i).stated.events[0].motion for i in range(20)} == {"bounce", "stop"}
    for i in range(20):
        assert len(moving(objects=(1, 1)).scene(i).objects) == 1


def test_every_motion_and_kind_of_clip_comes():
    stated = [moving(split="all").scene(i).stated for i in range(400)]
    assert {event.motion for said in stated for event in said.events} == set(MOTIONS)
    kinds = {(len(said.objects), len(said.events), said.ordered) for said in stated}
    assert kinds == {(1, 1, False), (1, 2, True), (2, 2, False), (2, 2, True), (2, 1, False)}
    assert {e.speed for said in stated for e in said.events} == {None, "slow", "fast"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"motions": ("left", "jump")}, "expected motions out of left, .* came"),
        ({"speeds": ()}, "expected speeds out of slow"),
        ({"shapes": ("star", "star")}, "each once"),
        ({"split": "test"}, "expected split to be one of train, held_out, all, came 'test'"),
        ({"objects": (1, 3)}, "within 1 to 2"),
        ({"objects": (2, 1)}, "within 1 to 2"),
        ({"frames": 0}, "frames >= 1"),
        ({"resolution": (0, 4)}, "at least 1 x 1"),
        ({"colours": ("red",)}, "list more"),
        ({"motions": ("clockwise",), "shapes": ("ring",)}, "no pair of motion and shape"),
        ({"motions": ("bounce",)}, "no pair of motion and shape"),
        ({"motions": ("bounce",), "objects": (2, 2), "split": "held_out"}, "no pair of motion and shape"),
        ({"motions": ("left",), "split": "held_out"}, "no pair of motion and shape"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        moving(**settings)


def test_no_scene_where_none_is_true():
    for caption, message in (
        ("a red star moves left and a red ring grows", "different colours"),
        (
            "a large red star moves up and right fast and a large blue ring moves down and right fast",
            "no room",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            moving_scene_of(stream(0), parse(caption))


@given(statements(), st.integers(0, 99))
def test_a_true_scene_of_a_caption(statement, seed):
    colours = [thing.colour for thing in statement.objects]
    if len(set(colours)) < len(colours) and None not in colours:
        return
    try:
        scene = moving_scene_of(stream(seed), statement)
    except ValueError:
        assert "fast" in {event.speed for event in statement.events} or len(colours) == 2
        return
    assert parse(scene.caption) == statement
    for thing, said in zip(scene.objects, statement.objects, strict=True):
        assert said.colour in (None, thing.colour)
        assert said.size in (None, thing.size)


@given(st.sampled_from(SHAPES), st.sampled_from(TEXTURES), st.integers(1, 3))
def test_a_quarter_turn_is_the_turned_picture(shape, texture, quarters):
    def drawn(angle: float) -> np.ndarray:
        thing = SceneObject(shape, "red", "large", texture, 0.5, 0.5, 0.4, angle)
        return paint((thing,), (PLAIN, PLAIN, (0.0, 0.0)), (64, 64)).astype(int)

    turned = np.rot90(drawn(0.0), -quarters)  # clockwise
    assert np.abs(drawn(quarters * math.pi / 2) - turned).max() <= 2


@given(positions, st.sampled_from([(16, 16), (16, 24)]))
def test_a_small_clip_is_the_pooled_large_one(position, resolution):
    dataset = moving(resolution=resolution)
    scene, when = dataset.scene(position), times(4)
    small = film(scene, resolution, when).astype(float)
    large = film(scene, (resolution[0] * 4, resolution[1] * 4), when).astype(float)
    pooled = large.reshape(4, resolution[0], 4, resolution[1], 4, 3).mean((2, 4))
    assert np.abs(small - pooled).mean() < 0.5
