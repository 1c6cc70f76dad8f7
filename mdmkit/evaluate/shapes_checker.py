"""Reads pictures of coloured shapes, and says whether they show what a caption asks for.

`read` sees a picture and nothing else: whatever differs from the background and hangs together is an object, whose
outline is fitted by each known shape in turn (analysis by synthesis). `check` then compares with the caption.
"""

from __future__ import annotations

import math
from itertools import permutations

import attrs
import numpy as np

from mdmkit.data.scene_captions import parse
from mdmkit.data.scene_drawing import FINE, cover
from mdmkit.data.scenes import COLOURS, POSITIONS, RADII, SHAPES, TEXTURES, Stated, Statement, holds

__all__ = ["FoundObject", "Verdict", "check", "read"]

Array = np.ndarray

LARGEST = 48  # shorter side at which pictures are read; larger ones are pooled first
OBJECT = 70.0  # distance in RGB (0..255) from the background from which a pixel belongs to an object
FAINTEST = 190.0  # least distance of any colour's tone from a light background
SMALLEST = 0.004  # of the picture's pixels; less is a speck
REACH = 3  # pixels around an object that its outline is fitted in
SPECK = 0.08  # a soft mask below this is noise
FINALISTS = 3  # shapes whose outlines are fitted closely
NUDGE = 0.25  # of a pixel, for slopes
CONTRAST = 0.4  # least distance of a texture's tones, as a share of the drawn one
BLURS = (0.0, 0.5, 0.8)  # in pixels; a small model draws soft edges
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
    background = _background(pixels)
    difference = pixels - background
    distance = np.sqrt((difference * difference).sum(-1))
    threshold = float(np.clip(0.4 * distance.max(), 25.0, OBJECT))
    labels = _components(distance > threshold)
    names, areas = np.unique(labels[labels > 0], return_counts=True)
    kept = [int(name) for name, area in zip(names, areas, strict=True) if area >= max(2, SMALLEST * labels.size)]
    found = [_read_object(pixels, background, labels, name, count=len(kept)) for name in kept]
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


def _read_object(pixels: Array, background: Array, labels: Array, name: int, count: int) -> FoundObject:
    height, width = labels.shape
    rows, columns = np.nonzero(labels == name)
    top, bottom = max(int(rows.min()) - REACH, 0), min(int(rows.max()) + 1 + REACH, height)
    left, right = max(int(columns.min()) - REACH, 0), min(int(columns.max()) + 1 + REACH, width)
    at = (slice(top, bottom), slice(left, right))
    mine = labels[at] == name
    near = mine | (labels[at] == 0)
    difference = np.where(near[..., None], (pixels - background)[at], 0.0)
    distance = np.sqrt((difference * difference).sum(-1))

    # how far from the background a pixel is that lies wholly inside, in the fainter of a texture's two tones
    inner = mine & _eroded(mine)
    full = float(np.percentile(distance[inner], 30)) if inner.sum() >= 3 else float(distance[mine].max())
    cap = min(full, FAINTEST)
    soft = np.minimum(distance / cap, 1.0)
    soft[soft < SPECK] = 0.0
    fit = _best_fit(_Patch(soft, full / cap, near, (top, bottom, left, right), -(-FINE // min(height, width))))

    inside, _ = fit.patch.outline(fit.shape, "solid", fit.pose, fit.blur)
    # the mean of an object's tones, from partly covered pixels too
    tone = (inside[..., None] * difference).sum((0, 1)) / max(float((inside * inside).sum()), 1e-9)
    colour = _nearest_colour(tone + background[at].mean((0, 1)))
    radius = float(fit.pose[2]) / min(height, width)
    sizes = RADII[min(count, max(RADII))]
    return FoundObject(
        shape=fit.shape,
        colour=colour,
        size=min(sizes, key=lambda word: abs(np.log(radius / sizes[word]))),
        texture=_texture(difference, fit, colour),
        x=float(fit.pose[0]) / width,
        y=float(fit.pose[1]) / height,
        radius=radius,
        area=float(soft.sum()),
        misfit=fit.misfit,
    )


def _eroded(mask: Array) -> Array:
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


@attrs.frozen(eq=False)
class _Patch:
    """The surroundings of one object: its soft mask, and how pixels were capped to get it."""

    soft: Array
    gain: float
    near: Array  # where no other object is
    window: tuple[int, int, int, int]
    factor: int

    def outline(self, shape: str, texture: str, pose: Array, blur: float) -> tuple[Array, Array]:
        """The share of each pixel inside a shape at pose (x, y, radius) in pixels, and the share in a second tone."""
        x, y, radius = (float(number) for number in pose)
        inside, second = cover(shape, texture, (x, y), radius, self.window, self.factor)
        inside = _blurred(inside, blur) * self.near
        return inside, np.zeros_like(inside) if second is None else _blurred(second, blur) * self.near

    def expected(self, shape: str, pose: Array, blur: float) -> Array:
        """The soft mask that a shape at this pose would give."""
        return np.minimum(self.outline(shape, "solid", pose, blur)[0] * self.gain, 1.0)


@attrs.frozen(eq=False)
class _Fit:
    patch: _Patch
    shape: str
    blur: float
    pose: Array
    misfit: float


def _best_fit(patch: _Patch) -> _Fit:
    """The shape whose outline, moved, scaled and blurred, is closest to the soft mask."""
    rough = [_refined(_first_guess(patch, shape), steps=1) for shape in SHAPES]
    rough.sort(key=lambda fit: fit.misfit)
    fits = [
        _refined(attrs.evolve(fit, blur=blur, misfit=np.inf), steps=3) for fit in rough[:FINALISTS] for blur in BLURS
    ]
    return min(fits, key=lambda fit: fit.misfit)


def _first_guess(patch: _Patch, shape: str) -> _Fit:
    """Area and centre of mass of the mask give radius and centre."""
    soft, (top, _, left, _) = patch.soft, patch.window
    area = float(soft.sum())
    unit_area, offset_x, offset_y = _MOMENTS[shape]
    radius = math.sqrt(area / unit_area)
    x = left + float((soft.sum(0) * (np.arange(soft.shape[1]) + 0.5)).sum()) / area - offset_x * radius
    y = top + float((soft.sum(1) * (np.arange(soft.shape[0]) + 0.5)).sum()) / area - offset_y * radius
    return _Fit(patch, shape, BLURS[0], np.array([x, y, radius]), np.inf)


def _refined(fit: _Fit, steps: int) -> _Fit:
    """Gauss-Newton on (x, y, radius); the best pose on the way."""
    patch, best, pose = fit.patch, fit, fit.pose
    area = float(patch.soft.sum())
    for step in range(steps + 1):
        expected = patch.expected(fit.shape, pose, fit.blur)
        residual = patch.soft - expected
        misfit = float((residual * residual).sum()) / area
        if misfit < best.misfit:
            best = attrs.evolve(fit, pose=pose, misfit=misfit)
        if step == steps:
            break
        moved = [patch.expected(fit.shape, pose + NUDGE * axis, fit.blur) for axis in np.eye(3)]
        jacobian = np.stack([((m - expected) / NUDGE).ravel() for m in moved], axis=1)
        change, *_ = np.linalg.lstsq(jacobian, residual.ravel(), rcond=None)
        pose = pose + np.clip(change, -2.0, 2.0)
        pose[2] = max(pose[2], 1.0)
    return best


def _blurred(picture: Array, blur: float) -> Array:
    if not blur:
        return picture
    side = math.exp(-0.5 / blur**2)
    outer, middle = side / (1 + 2 * side), 1 / (1 + 2 * side)
    padded = np.pad(picture, 1, mode="edge")
    rows = outer * (padded[:-2] + padded[2:]) + middle * padded[1:-1]
    return outer * (rows[:, :-2] + rows[:, 2:]) + middle * rows[:, 1:-1]


def _nearest_colour(tone: Array) -> str:
    def distance(word: str) -> float:
        first, second = (np.array(t, dtype=float) for t in COLOURS[word])
        along = np.clip(((tone - first) @ (second - first)) / ((second - first) @ (second - first)), 0.0, 0.7)
        return float(np.linalg.norm(tone - first - along * (second - first)))

    return min(COLOURS, key=distance)


def _texture(difference: Array, fit: _Fit, colour: str) -> str:
    """The texture that explains most of the object's pixels, if its two tones are about as far apart as drawn ones."""
    first, second = (np.array(tone, dtype=float) for tone in COLOURS[colour])
    contrast = (second - first) / ((second - first) @ (second - first))
    data = difference[fit.patch.near]
    best, word = np.inf, "solid"
    for texture in TEXTURES[1:]:
        inside, toned = fit.patch.outline(fit.shape, texture, fit.pose, fit.blur)
        design = np.stack([inside[fit.patch.near], toned[fit.patch.near]], axis=1)
        tones, *_ = np.linalg.lstsq(design, data, rcond=None)
        residual = float(((data - design @ tones) ** 2).sum())
        if residual < best:
            best, word = residual, texture if tones[1] @ contrast > CONTRAST else "solid"
    return word


def _moments() -> dict[str, tuple[float, float, float]]:
    """Area and centre of mass (x, y) of each shape of radius 1."""
    side = 100
    centres = (np.arange(side) + 0.5) * 2 / side - 1
    moments = {}
    for shape in SHAPES:
        inside, _ = cover(shape, "solid", (side / 2, side / 2), side / 2, (0, side, 0, side), 1)
        total = float(inside.sum())
        x, y = float((inside.sum(0) * centres).sum()), float((inside.sum(1) * centres).sum())
        moments[shape] = (total * (2 / side) ** 2, x / total, y / total)
    return moments


_MOMENTS = _moments()
