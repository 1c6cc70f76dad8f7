"""The checker of shapes pictures: how often it reads true scenes rightly, and what it says of wrong ones."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch

from mdmkit.data.scene_drawing import draw
from mdmkit.data.scenes import Scene
from mdmkit.data.shapes import Shapes
from mdmkit.evaluate.prompt_accuracy import PromptAccuracy
from mdmkit.evaluate.shapes_checker import check
from mdmkit.evaluate.shapes_reader import UNCLEAR, read


def soft(image: np.ndarray, seed: int) -> np.ndarray:
    """A picture as a small model draws it: blurred by 0.7 pixels, with noise; float (3, h, w) in [-1, 1]."""
    x = image.astype(float).transpose(2, 0, 1) / 127.5 - 1
    side = np.exp(-0.5 / 0.7**2)
    for axis in (1, 2):
        padded = np.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(3)], mode="edge")
        parts = [np.take(padded, range(i, i + x.shape[axis]), axis) for i in range(3)]
        x = (parts[1] + side * (parts[0] + parts[2])) / (1 + 2 * side)
    noise = np.random.Generator(np.random.Philox(seed)).standard_normal(x.shape)
    return np.clip(x + 0.08 * noise, -1, 1)


def accuracy(resolution: tuple[int, int], degrade: bool, count: int, **settings) -> dict[str, float]:
    """Shares of objects read rightly, of scenes whose objects are all found, and of captions found true."""
    dataset = Shapes(seed=11, resolution=resolution, split="all", **settings)
    right: dict[str, list[bool]] = {
        name: [] for name in ("shape", "colour", "size", "texture", "count", "all")
    }
    for i in range(count):
        scene = dataset.scene(i)
        image = dataset.sample(i).image
        picture = soft(image, i) if degrade else image
        found = list(read(picture))
        right["count"].append(len(found) == len(scene.objects))
        for thing in scene.objects:
            nearest = min(found, key=lambda f: np.hypot(f.x - thing.x, f.y - thing.y), default=None)
            for name in ("shape", "colour", "size", "texture"):
                right[name].append(getattr(nearest, name, None) == getattr(thing, name))
        right["all"].append(check(picture, scene.caption).right)
    return {name: float(np.mean(parts)) for name, parts in right.items()}


@pytest.mark.parametrize(
    ("resolution", "degrade", "floors"),
    [
        ((16, 16), False, {"colour": 0.99, "shape": 0.97, "count": 1.0}),
        ((32, 32), False, {"colour": 0.99, "shape": 0.99, "texture": 0.97, "size": 0.99, "all": 0.97}),
        ((32, 32), True, {"colour": 0.97, "shape": 0.96, "count": 0.99}),
        ((64, 64), True, {"colour": 0.99, "shape": 0.99, "all": 0.95}),
        ((24, 48), False, {"colour": 0.99, "shape": 0.97, "all": 0.95}),
    ],
)
def test_true_scenes_of_one_object_are_read_rightly(resolution, degrade, floors):
    measured = accuracy(resolution, degrade, 60, objects=(1, 1))
    assert {name: measured[name] for name in floors if measured[name] < floors[name]} == {}


def test_true_scenes_of_many_objects_are_read_rightly():
    measured = accuracy((32, 32), False, 40, objects=(2, 3))
    assert min(measured[name] for name in ("colour", "shape", "size", "count", "all")) >= 0.95


def test_varied_backgrounds_do_not_mislead():
    measured = accuracy((32, 32), False, 40, objects=(1, 2), background="varied")
    assert min(measured[name] for name in ("colour", "shape", "count")) >= 0.97


def test_bytes_and_floats_read_alike():
    dataset = Shapes(seed=2, resolution=(32, 32))
    for i in range(5):
        image = dataset.sample(i).image
        as_float = image.transpose(2, 0, 1) / 127.5 - 1
        for a, b in zip(read(image), read(as_float), strict=True):
            assert attrs.evolve(a, x=0, y=0, radius=0, area=0, misfit=0) == attrs.evolve(
                b, x=0, y=0, radius=0, area=0, misfit=0
            )


def test_large_pictures_are_read_too():
    dataset = Shapes(seed=2, resolution=(256, 256), objects=(1, 1))
    for i in range(5):
        assert check(dataset.sample(i).image, dataset.scene(i).caption).right


def test_a_mirrored_scene_turns_relations_round():
    dataset = Shapes(seed=6, resolution=(48, 48), objects=(2, 2), wording="plain")
    seen = 0
    for i in range(30):
        scene = dataset.scene(i)
        if scene.stated.relations and scene.stated.relations[0].name in ("left of", "right of"):
            seen += 1
            mirrored = draw(
                attrs.evolve(scene, objects=tuple(attrs.evolve(o, x=1 - o.x) for o in scene.objects)),
                (48, 48),
            )
            verdict = check(mirrored, scene.caption)
            assert verdict.colour
            assert verdict.shape
            assert verdict.relation is False
            assert not verdict.right
    assert seen > 3


def changed(scene: Scene, **attributes) -> Scene:
    return attrs.evolve(scene, objects=(attrs.evolve(scene.objects[0], **attributes), *scene.objects[1:]))


@pytest.mark.parametrize(
    ("said", "drawn", "wrong"),
    [
        ("a red star", "a blue star", "colour"),
        ("a red star", "a red ring", "shape"),
        ("a small red star", "a large red star", "size"),
        ("a striped red square", "a solid red square", "texture"),
        ("a red star at the top left", "a red star at the bottom", "position"),
        ("a red star left of a blue ring", "a red star right of a blue ring", "relation"),
        ("a red star", "a red star and a blue ring", "count"),
        ("a red star and a blue ring", "a red star", "count"),
    ],
)
def test_each_part_of_a_verdict_can_fail(said, drawn, wrong):
    from mdmkit.data.scene_captions import parse
    from mdmkit.data.shapes import scene_of
    from mdmkit.streams import stream

    picture = draw(scene_of(stream(1), parse(drawn)), (48, 48))
    assert check(picture, drawn).right
    verdict = check(picture, said)
    assert getattr(verdict, wrong) is False
    assert not verdict.right


def test_swapped_colours_are_wrong():
    dataset = Shapes(seed=8, resolution=(32, 32), objects=(2, 2), wording="plain", split="all")
    for i in range(10):
        scene = dataset.scene(i)
        first, second = scene.objects
        if first.colour != second.colour and first.shape != second.shape:
            swapped = attrs.evolve(
                scene,
                objects=(
                    attrs.evolve(first, colour=second.colour),
                    attrs.evolve(second, colour=first.colour),
                ),
            )
            assert not check(draw(swapped, (32, 32)), scene.caption).right


def test_pictures_without_shapes_are_not_right():
    empty = np.full((32, 32, 3), 243, dtype=np.uint8)
    assert read(empty) == ()
    verdict = check(empty, "a red star")
    assert (verdict.shape, verdict.colour, verdict.count) == (False, False, False)
    noise = np.random.Generator(np.random.Philox(1)).uniform(-1, 1, (3, 32, 32))
    assert not check(noise, "a red star").right


def test_an_outline_of_no_shape_is_unclear():
    picture = np.full((32, 32, 3), 243, dtype=np.uint8)
    picture[4:8, 4:28] = picture[4:28, 4:8] = (226, 36, 44)  # a corner
    (thing,) = read(picture)
    assert (thing.shape, thing.colour) == (UNCLEAR, "red")


@pytest.mark.parametrize(
    "picture", [np.zeros((1, 8, 8)), np.zeros((8, 8, 3)), np.zeros((3, 8), dtype=np.uint8)]
)
def test_wrong_pictures(picture):
    with pytest.raises(ValueError, match=r"expected float \(3, H, W\)"):
        read(picture)


def as_batch(dataset: Shapes, count: int) -> tuple[torch.Tensor, list[str]]:
    samples = [dataset.sample(i) for i in range(count)]
    images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
    return images.float() / 127.5 - 1, [s.caption for s in samples]


def test_prompt_accuracy_of_true_and_of_shuffled_pictures():
    pictures, captions = as_batch(Shapes(seed=1, resolution=(32, 32), objects=(1, 2)), 24)
    metric = PromptAccuracy(true_scenes=10)
    metric.update(pictures[:10], captions[:10])
    metric.update(pictures[10:], captions[10:])
    result = metric.result()
    assert result["pictures"] == 24
    assert (
        min(result[name] for name in ("colour", "shape", "count", "checker_colour", "checker_shape")) >= 0.95
    )
    assert len(metric.verdicts["checker_shape"]) == 10

    shuffled = PromptAccuracy(true_scenes=0)
    shuffled.update(pictures.roll(1, 0), captions)
    result = shuffled.result()
    assert result["shape"] < 0.5
    assert result["all"] < 0.2
    assert not any(name.startswith("checker_") for name in result)


def test_prompt_accuracy_counts_what_it_cannot_read():
    pictures, captions = as_batch(Shapes(seed=1, resolution=(16, 16)), 2)
    metric = PromptAccuracy(true_scenes=0)
    metric.update(pictures, ["a cat", captions[1]])
    assert (metric.result()["pictures"], metric.result()["unread"]) == (1, 1)
    with pytest.raises(ValueError, match="expected captions about shapes, came 0 others"):
        PromptAccuracy().result()
    with pytest.raises(ValueError, match="B captions"):
        metric.update(pictures, captions[:1])
