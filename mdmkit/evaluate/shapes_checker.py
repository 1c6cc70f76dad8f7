"""Reads pictures of coloured shapes, and says whether they show what a caption asks for.

`read` sees a picture and nothing else: whatever differs from the background and hangs together is an object, whose
outline is fitted by each known shape in turn (analysis by synthesis). `check` then compares with the caption.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import attrs
import numpy as np

from mdmkit.data.scene_captions import parse
from mdmkit.data.scene_drawing import coverage
from mdmkit.data.scenes import COLOURS, POSITIONS, RADII, SHAPES, TEXTURES, Stated, Statement, holds

__all__ = ["FoundObject", "Verdict", "check", "read"]

Array = np.ndarray

LARGEST = 48  # shorter side at which pictures are read; larger ones are pooled first
OBJECT = 70.0  # distance in RGB (0..255) from the background from which a pixel belongs to an object
FAINTEST = 190.0  # least distance of any colour's tone from a light background
SMALLEST = 0.004  # of the picture's pixels; less is a speck
BLURS = (0.0, 0.6)  # in pixels; a small model draws soft edges
ACROSS = 1.2  # for relations: as CLEAR in scenes, with room for a reading that is not exact
ASIDE = 0.06  # an object farther than this from the centre stands at a side


@attrs.frozen
class FoundObject:
    """An object as read from a picture: its attributes, its centre in [0, 1], radius in shorter sides.

    `misfit` is the squared difference to the best outline as a share of the object's area, 0 for a perfect one.
    """

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    area: float
    misfit: float


@attrs.frozen
class Verdict:
    """What of a caption is true in a picture; None where the caption does not say it."""

    colour: bool | None
    shape: bool
    relation: bool | None
    size: bool | None
    texture: bool | None
    position: bool | None
    count: bool

    @property
    def right(self) -> bool:
        """Everything the caption says is there, and no other object."""
        parts = (self.colour, self.shape, self.relation, self.size, self.texture, self.position, self.count)
        return all(part is not False for part in parts)


def check(picture: Array, caption: str) -> Verdict:
    """Whether a picture shows what a caption asks for.

    picture: float (3, H, W) in [-1, 1] or uint8 (H, W, 3). Only as many objects as the caption names are looked at,
    the largest ones, so that a picture full of things is not right by accident. Raises ValueError for a caption that
    `parse` cannot read.
    """
    return judge(read(picture), parse(caption))


def judge(found: tuple[FoundObject, ...], stated: Statement) -> Verdict:
    """Compares what was found with what was stated, in the assignment of objects that favours the caption most."""
    wanted = stated.objects
    largest = sorted(found, key=lambda thing: -thing.area)[: len(wanted)]
    padded: list[FoundObject | None] = [*largest, *[None] * (len(wanted) - len(largest))]
    verdicts = [_judge_assigned(things, stated) for things in permutations(padded)]
    score, verdict = max(verdicts, key=lambda pair: pair[0])
    return attrs.evolve(verdict, count=len(found) == len(wanted))


def read(picture: Array) -> tuple[FoundObject, ...]:
    """The objects in a picture, float (3, H, W) in [-1, 1] or uint8 (H, W, 3), from left to right."""
    pixels = _pixels(picture)
    difference = pixels - _background(pixels)
    distance = np.sqrt((difference * difference).sum(-1))
    threshold = float(np.clip(0.4 * distance.max(), 25.0, OBJECT))
    labels = _components(distance > threshold)
    names, areas = np.unique(labels[labels > 0], return_counts=True)
    kept = [int(name) for name, area in zip(names, areas, strict=True) if area >= max(2, SMALLEST * labels.size)]
    found = [_read_object(difference, distance, labels, name, count=len(kept)) for name in kept]
    return tuple(sorted(found, key=lambda thing: thing.x))


def _judge_assigned(things: tuple[FoundObject | None, ...], stated: Statement) -> tuple[int, Verdict]:
    pairs = list(zip(things, stated.objects, strict=True))

    def right(attribute: str) -> list[bool]:
        said = [(thing, getattr(wish, attribute)) for thing, wish in pairs if getattr(wish, attribute)]
        return [thing is not None and getattr(thing, attribute) == word for thing, word in said]

    def all_or_none(parts: list[bool]) -> bool | None:
        return all(parts) if parts else None

    relations = []
    for relation in stated.relations:
        first, second = things[relation.first], things[relation.second]
        true = first is not None and second is not None
        relations.append(
            true and holds(relation.name, (first.x, first.y), (second.x, second.y), across=ACROSS)
        )
    places = [thing is not None and _stands_at(thing, wish) for thing, wish in pairs if wish.position]
    colours, shapes, sizes, textures = right("colour"), right("shape"), right("size"), right("texture")
    score = 100 * (sum(colours) + sum(shapes)) + 10 * sum(relations) + sum(sizes) + sum(textures) + sum(places)
    verdict = Verdict(
        colour=all_or_none(colours),
        shape=all(shapes),
        relation=all_or_none(relations),
        size=all_or_none(sizes),
        texture=all_or_none(textures),
        position=all_or_none(places),
        count=True,
    )
    return score, verdict


def _stands_at(thing: FoundObject, wish: Stated) -> bool:
    side_x, side_y = POSITIONS[wish.position or "centre"]
    return _side(thing.x) == side_x and _side(thing.y) == side_y


def _side(coordinate: float) -> int:
    return 0 if abs(coordinate - 0.5) <= ASIDE else (1 if coordinate > 0.5 else -1)


def _pixels(picture: Array) -> Array:
    """Float (h, w, 3) in 0..255, pooled to LARGEST where the picture is much larger."""
    picture = np.asarray(picture)
    if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3:
        pixels = picture.astype(np.float64)
    elif picture.dtype.kind == "f" and picture.ndim == 3 and picture.shape[0] == 3:
        pixels = (np.clip(picture.astype(np.float64), -1.0, 1.0).transpose(1, 2, 0) + 1.0) * 127.5
    else:
        raise ValueError(
            f"expected float (3, H, W) in [-1, 1] or uint8 (H, W, 3), came {picture.dtype} {picture.shape}"
        )
    factor = min(pixels.shape[:2]) // LARGEST
    if factor > 1:
        height, width = (side // factor for side in pixels.shape[:2])
        pixels = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3).mean((1, 3))
    return pixels


def _background(pixels: Array) -> Array:
    """A plane in each colour through the pixels that look like the picture's border."""
    height, width, _ = pixels.shape
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.broadcast_to(np.median(border, axis=0), pixels.shape)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    design = np.stack([np.ones_like(x), x, y], axis=-1)
    for nearby in (60.0, 30.0, 30.0):
        alike = np.abs(pixels - background).max(-1) < nearby
        if alike.sum() < 0.1 * alike.size:
            break
        plane, *_ = np.linalg.lstsq(design[alike], pixels[alike], rcond=None)
        background = design @ plane
    return background


def _components(mask: Array) -> Array:
    """Labels (h, w) of the parts of a mask that hang together along rows and columns; 0 outside."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        before = labels
        spread = np.pad(labels, 1)
        highest = np.max(
            [spread[1:-1, 1:-1], spread[:-2, 1:-1], spread[2:, 1:-1], spread[1:-1, :-2], spread[1:-1, 2:]], axis=0
        )
        labels = np.where(mask, highest, 0)
        if (labels == before).all():
            return labels


def _read_object(difference: Array, distance: Array, labels: Array, name: int, count: int) -> FoundObject:
    mine = labels == name
    others = (labels > 0) & ~mine
    rows, columns = np.nonzero(mine)
    reach = 3
    top, bottom = max(rows.min() - reach, 0), rows.max() + reach + 1
    left, right = max(columns.min() - reach, 0), columns.max() + reach + 1
    near = np.zeros_like(mine)
    near[top:bottom, left:right] = True
    near &= ~others

    # full is the distance of a pixel that lies wholly inside, in the fainter of a texture's two tones
    inner = mine & _eroded(mine)
    full = float(np.percentile(distance[inner], 30)) if inner.sum() >= 3 else float(distance[mine].max())
    cap = min(full, FAINTEST)
    soft = np.where(near, np.minimum(distance / cap, 1.0), 0.0)
    soft[soft < 0.08] = 0.0
    fits = [_fit(soft, full / cap, shape) for shape in SHAPES]
    best = int(np.argmin([misfit for misfit, _ in fits]))
    misfit, pose = fits[best]
    shape = SHAPES[best]
    inside, _ = _template(shape, "solid", pose, mine.shape)
    weights = np.where(near, inside, 0.0)
    # the mean of an object's tones, of partly covered pixels too
    tone = (weights[..., None] * difference).sum((0, 1)) / max((weights * weights).sum(), 1e-9)
    background = 243.0  # replaced below by the caller's own estimate through `difference`
    colour = _nearest_colour(tone + background)
    texture = _texture(difference, near, shape, pose)
    x, y, radius = pose
    sizes = RADII[min(count, max(RADII))]
    size = min(sizes, key=lambda word: abs(np.log(radius / sizes[word])))
    return FoundObject(shape, colour, size, texture, x, y, radius, float(soft.sum()), misfit)


def _eroded(mask: Array) -> Array:
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _template(shape: str, texture: str, pose: tuple[float, float, float], size: tuple[int, ...]) -> tuple[Array, Array]:
    at, inside, second = coverage(shape, texture, *pose, (size[0], size[1]))
    whole, tone = np.zeros(size), np.zeros(size)
    whole[at] = inside
    if second is not None:
        tone[at] = second
    return whole, tone


def _fit(soft: Array, gain: float, shape: str) -> tuple[float, tuple[float, float, float]]:
    """Least misfit of a shape's outline to a soft mask, and the pose (x, y, radius) where it is reached."""
    height, width = soft.shape
    area = soft.sum()
    ys, xs = np.nonzero(soft > 0.5)
    if not len(ys):
        ys, xs = np.nonzero(soft > 0)
    unit_area, (ox, oy) = _MOMENTS[shape]
    short = min(height, width)
    radius = float(np.sqrt(area / unit_area)) / short
    cy, cx = ((soft.sum(1) * (np.arange(height) + 0.5)).sum() / area, (soft.sum(0) * (np.arange(width) + 0.5)).sum() / area)
    pose = np.array([cx / width - ox * radius * short / width, cy / height - oy * radius * short / height, radius])
    best = (np.inf, tuple(pose))
    for blur in BLURS:
        here = pose.copy()
        for _ in range(4):
            residual = soft - _outline(shape, here, soft.shape, gain, blur)
            misfit = float((residual * residual).sum() / area)
            if misfit < best[0]:
                best = (misfit, tuple(float(p) for p in here))
            steps = np.array([0.25 / width, 0.25 / height, 0.25 / short])
            slopes = []
            for i in range(3):
                moved = here.copy()
                moved[i] += steps[i]
                slopes.append(((soft - residual) * 0 + _outline(shape, moved, soft.shape, gain, blur) - (soft - residual)).ravel() / steps[i])
            jacobian = np.stack(slopes, axis=1)
            change, *_ = np.linalg.lstsq(jacobian, residual.ravel(), rcond=None)
            here = here + np.clip(change, -8 * steps, 8 * steps)
            here[2] = np.clip(here[2], 1.0 / short, 0.7)
    return best


def _outline(shape: str, pose: Array, size: tuple[int, ...], gain: float, blur: float) -> Array:
    x, y, radius = (float(p) for p in pose)
    whole, _ = _template(shape, "solid", (x, y, radius), size)
    if blur:
        side = np.exp(-0.5 / blur**2)
        kernel = np.array([side, 1.0, side]) / (1 + 2 * side)
        padded = np.pad(whole, 1, mode="edge")
        whole = kernel[0] * padded[:-2] + kernel[1] * padded[1:-1] + kernel[2] * padded[2:]
        whole = kernel[0] * whole[:, :-2] + kernel[1] * whole[:, 1:-1] + kernel[2] * whole[:, 2:]
    return np.minimum(whole * gain, 1.0)


def _nearest_colour(tone: Array) -> str:
    def distance(word: str) -> float:
        first, second = (np.array(t, dtype=float) for t in COLOURS[word])
        along = np.clip(((tone - first) @ (second - first)) / ((second - first) @ (second - first)), 0.0, 0.7)
        return float(np.linalg.norm(tone - first - along * (second - first)))

    return min(COLOURS, key=distance)


def _texture(difference: Array, near: Array, shape: str, pose: tuple[float, float, float]) -> str:
    """The texture whose two tones, fitted freely, explain most of the object's pixels."""
    best, word = np.inf, "solid"
    data = difference[near]
    for texture in TEXTURES:
        whole, second = _template(shape, texture, pose, near.shape)
        design = np.stack([whole[near], second[near]], axis=1)[:, : 1 if texture == "solid" else 2]
        tones, *_ = np.linalg.lstsq(design, data, rcond=None)
        residual = float(((data - design @ tones) ** 2).sum())
        if texture == "solid":
            residual *= 0.7  # two free tones always explain a little more than one
        if residual < best:
            best, word = residual, texture
    return word


def _moments() -> Iterator[tuple[str, tuple[float, tuple[float, float]]]]:
    side = 200
    grid = (np.arange(side) + 0.5) / side * 2 - 1
    for shape in SHAPES:
        whole, _ = _template(shape, "solid", (0.5, 0.5, 0.5), (side, side))
        total = whole.sum()
        centroid = (float((whole.sum(0) * grid).sum() / total), float((whole.sum(1) * grid).sum() / total))
        yield shape, (float(total * (2 / side) ** 2), centroid)


_MOMENTS = dict(_moments())
