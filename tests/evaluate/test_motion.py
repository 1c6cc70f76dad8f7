"""The checker of moving shapes: how often it reads true clips rightly, and what it says of wrong ones."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch

from mdmkit.data.moving import DIRECTIONS, TURN, Happening, MotionStatement
from mdmkit.data.moving_captions import parse
from mdmkit.data.moving_shapes import MovingShapes, film, moving_scene_of, times
from mdmkit.evaluate.motion_accuracy import MotionAccuracy
from mdmkit.evaluate.motion_checker import MotionVerdict, check
from mdmkit.evaluate.motion_reader import change, follow
from mdmkit.evaluate.temporal_consistency import TemporalConsistency, known_poses, warping_error
from mdmkit.streams import stream


def moving(side: int = 32, **settings) -> MovingShapes:
    return MovingShapes(**{"seed": 5, "resolution": (side, side), "frames": 8, "split": "all", **settings})


def clip_of(caption: str, *, side: int = 48, frames: int = 8, seed: int = 1) -> np.ndarray:
    scene = moving_scene_of(stream(seed), parse(caption))
    return film(scene, (side, side), times(frames))


def shares(dataset: MovingShapes, count: int) -> dict[str, float]:
    found: dict[str, list[bool]] = {}
    for i in range(count):
        sample = dataset.sample(i)
        verdict = check(sample.image, sample.caption)
        for name, right in {**attrs.asdict(verdict), "motion": verdict.motion}.items():
            if right is not None:
                found.setdefault(name, []).append(right)
    return {name: float(np.mean(right)) for name, right in found.items()}


@pytest.mark.parametrize(
    ("side", "floors"),
    [
        (16, {"direction": 0.95, "motion": 0.92, "order": 0.85, "still": 0.95}),
        (32, {"direction": 0.99, "motion": 0.98, "order": 0.95, "objects": 0.95, "turn": 0.95}),
        (64, {"direction": 0.99, "motion": 0.99, "order": 0.99, "objects": 0.99, "turn": 0.99}),
    ],
)
def test_true_clips_are_read_rightly(side, floors):
    measured = shares(moving(side), 40)
    assert {name: measured[name] for name in floors if measured[name] < floors[name]} == {}


@pytest.mark.parametrize("frames", [5, 7, 16])
def test_any_number_of_frames(frames):
    assert shares(moving(48, frames=frames, motions=(*DIRECTIONS, "grow", "still")), 15)["motion"] >= 0.93


def test_other_shapes_of_pictures_and_backgrounds():
    wide = MovingShapes(seed=2, resolution=(32, 48), frames=8, background="varied", split="all")
    measured = shares(wide, 25)
    assert measured["motion"] >= 0.95
    assert measured["objects"] >= 0.95


SAID = "a red star moves left"


@pytest.mark.parametrize(
    ("said", "drawn", "wrong"),
    [
        (SAID, "a blue star moves left", "objects"),
        (SAID, "a red ring moves left", "objects"),
        (SAID, "a red star moves left and a blue ring stays still", "objects"),
        (SAID, "a red star moves right", "direction"),
        (SAID, "a red star moves up", "direction"),
        (SAID, "a red star moves up and left", "direction"),
        (SAID, "a red star stays still", "direction"),
        ("a red star moves left slowly", "a red star moves left fast", "speed"),
        ("a red star moves left fast", SAID, "speed"),
        ("a red star grows", "a red star shrinks", "growth"),
        ("a red star grows", "a red star stays still", "growth"),
        ("a red heart turns clockwise", "a red heart turns anticlockwise", "turn"),
        ("a red square turns clockwise", "a red square turns anticlockwise", "turn"),
        ("a red heart turns clockwise", "a red heart moves down", "turn"),
        ("a red star stays still", SAID, "still"),
        ("a red star stays still", "a red star turns clockwise", "still"),
        (
            "a red star and a blue ring collide and bounce",
            "a red star and a blue ring collide and stop",
            "meeting",
        ),
        (
            "a red star and a blue ring collide and stop",
            "a red star and a blue ring collide and bounce",
            "meeting",
        ),
        (
            "a red star and a blue ring collide and stop",
            "a red star stays still and a blue ring stays still",
            "meeting",
        ),
        (
            "a red star moves left, then a blue ring moves up",
            "a blue ring moves up, then a red star moves left",
            "order",
        ),
        (
            "a red star moves left, then a blue ring moves up",
            "a red star moves left and a blue ring moves up",
            "order",
        ),
        ("a red star grows, then moves up", "a red star moves up, then grows", "order"),
        (
            "a red star moves left and a blue ring moves up",
            "a red star moves up and a blue ring moves left",
            "direction",
        ),
    ],
)
def test_each_part_of_a_verdict_can_fail(said, drawn, wrong):
    clip = clip_of(drawn)
    true = check(clip, drawn)
    assert true.objects
    assert true.motion
    verdict = check(clip, said)
    assert getattr(verdict, wrong) is False
    assert not (verdict.objects and verdict.motion)


def test_a_clip_backwards_goes_the_other_way():
    seen = 0
    for i in range(20):
        sample = moving(
            48, objects=(1, 1), sequences=False, motions=("left", "up", "grow", "clockwise")
        ).sample(i)
        assert check(sample.image, sample.caption).motion
        assert check(sample.image[::-1], sample.caption).motion is False
        seen += 1
    assert seen == 20


def test_a_clip_that_jumps_between_two_places_is_not_a_motion():
    clip = clip_of("a red star moves left fast")
    assert not check(clip[[0, 7, 0, 7, 0, 7, 0, 7]], "a red star moves left fast").motion


def test_places_are_read_to_a_fraction_of_a_pixel():
    dataset = moving(48, textures=("solid",))
    for i in range(15):
        scene, clip = dataset.scene(i), dataset.sample(i).image
        tracks = {track.thing.colour: track for track in follow(clip)}
        for thing, (_, poses) in zip(scene.objects, known_poses(scene, 8), strict=True):
            track = tracks[thing.colour]
            assert np.abs(track.poses[:, :2] - poses[:, :2]).max() < 0.5 / 48
            assert np.abs(track.poses[:, 2] - poses[:, 2]).max() < 0.5 / 48


def test_turns_are_read_to_a_few_degrees():
    for shape in ("square", "star", "triangle", "heart", "cross", "diamond"):
        said = MotionStatement((parse(f"a large red {shape}").objects[0],), (Happening(0, "clockwise"),))
        scene = moving_scene_of(stream(3), said)
        (track,) = follow(film(scene, (64, 64), times(8)))
        true = scene.courses[0].at(1.0).angle
        assert abs(change(track, 0.0, 1.0).turn - true) < np.radians(8)
        assert abs(true) > 0.8 * TURN["clockwise"]


def test_a_picture_is_judged_by_its_objects_alone():
    clip = clip_of("a red star moves left", frames=1)
    assert check(clip, "a red star moves right") == MotionVerdict(objects=True)
    assert check(clip, "a red star") == MotionVerdict(objects=True)
    assert not check(clip, "a red ring").objects


def test_clips_without_shapes_are_not_right():
    empty = np.full((4, 32, 32, 3), 243, np.uint8)
    assert follow(empty) == ()
    verdict = check(empty, "a red star moves left")
    assert (verdict.objects, verdict.direction) == (False, False)
    assert check(empty, "a red star and a blue ring collide and stop").meeting is False
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    assert not check(noise, "a red star moves left").objects


def as_drawn(dataset: MovingShapes, count: int) -> tuple[torch.Tensor, list[str]]:
    samples = [dataset.sample(i) for i in range(count)]
    clips = torch.from_numpy(np.stack([s.image for s in samples])).movedim(-1, 1)
    return clips.float() / 127.5 - 1, [s.caption for s in samples]


def test_motion_accuracy_of_true_and_of_shuffled_clips():
    clips, captions = as_drawn(moving(32), 16)
    metric = MotionAccuracy(true_clips=6)
    metric.update(clips[:6], captions[:6])
    metric.update(clips[6:], captions[6:])
    result = metric.result()
    assert (result["clips"], result["unread"]) == (16.0, 0.0)
    assert min(result["motion"], result["checker_motion"], result["objects"]) >= 0.9
    assert len(metric.verdicts["checker_objects"]) == 6
    shuffled = MotionAccuracy(true_clips=0)
    shuffled.update(clips.roll(1, 0), captions)
    assert shuffled.result()["motion"] < 0.5
    assert shuffled.result()["all"] < 0.2
    assert not any(name.startswith("checker_") for name in shuffled.result())
    reversed_ = MotionAccuracy(true_clips=0)
    reversed_.update(clips.flip(2), captions)
    assert reversed_.result()["direction"] < 0.2


def test_metrics_count_what_they_cannot_read():
    clips, captions = as_drawn(moving(16), 2)
    for cls in (MotionAccuracy, TemporalConsistency):
        metric = cls(true_clips=0)
        metric.update(clips, ["a cat", captions[1]])
        assert (metric.result()["clips"], metric.result()["unread"]) == (1, 1)
        with pytest.raises(ValueError, match="expected captions about moving shapes, came 0 others"):
            cls().result()
        with pytest.raises(ValueError, match="B captions"):
            metric.update(clips, captions[:1])
        with pytest.raises(ValueError, match="true_clips >= 0"):
            cls(true_clips=-1)


def errors(clip: np.ndarray, posed) -> dict[str, float]:
    return {name: total / max(count, 1) for name, (total, count) in warping_error(clip, posed).items()}


def test_the_known_motion_explains_what_changes():
    dataset = moving(64, textures=("striped", "checkered"), motions=("left", "up right", "clockwise", "grow"))
    for i in range(8):
        scene, clip = dataset.scene(i), dataset.sample(i).image
        found = errors(clip, known_poses(scene, 8))
        assert found["warped"] < 0.25 * found["in_place"]
        assert found["background"] == 0
        backwards = [(shape, poses[::-1]) for shape, poses in known_poses(scene, 8)]
        wrong = errors(clip, backwards)
        assert wrong["warped"] > 2 * found["warped"] or wrong["background"] > 0.001


def test_flicker_raises_the_error_and_motion_does_not():
    scene = moving_scene_of(stream(0), parse("a large checkered red square moves right"))
    posed, clip = known_poses(scene, 8), film(scene, (64, 64), times(8))
    calm = errors(clip, posed)
    flicker = clip.copy()
    flicker[1::2] = (flicker[1::2] * 0.8).astype(np.uint8)
    assert errors(flicker, posed)["warped"] > calm["warped"] + 0.03
    assert errors(flicker, posed)["background"] > 0.1
    still = film(scene, (64, 64), [0.0] * 8)
    assert errors(still, [(shape, poses[:1].repeat(8, 0)) for shape, poses in posed])["warped"] < 1e-9


def test_objects_in_front_are_not_measured_as_what_is_behind():
    scene = moving_scene_of(stream(0), parse("a large red square stays still"))
    (shape, poses), clip = known_poses(scene, 4)[0], film(scene, (64, 64), times(4))
    covered = warping_error(clip, [(shape, poses), (shape, poses)])
    alone = warping_error(clip, [(shape, poses)])
    assert covered["warped"][1] == alone["warped"][1] > 0


def test_temporal_consistency_of_true_and_of_flickering_clips():
    clips, captions = as_drawn(moving(48), 8)
    metric, worse = TemporalConsistency(true_clips=4), TemporalConsistency(true_clips=0)
    metric.update(clips, captions)
    result = metric.result()
    assert result["warped"] < 0.5 * result["in_place"]
    assert result["background"] == result["true_background"] == 0
    assert result["lost"] == 0
    assert result["true_warped"] < 0.04
    noisy = clips + 0.3 * torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    worse.update(noisy.clamp(-1, 1), captions)
    assert worse.result()["warped"] > 2 * result["warped"]
    assert worse.result()["background"] > 0.02
