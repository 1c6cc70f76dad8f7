"""Reads pictures of coloured shapes: which objects they show, and where.

`read` sees a picture and nothing else. Whatever differs from the background and hangs together is an object;
each known shape's outline is fitted to it in turn, and the closest one names it (analysis by synthesis).
"""

from __future__ import annotations

import math

import attrs
import numpy as np

from mdmkit.data.scene_drawing import FINE, cover
from mdmkit.data.scenes import COLOURS, RADII, SHAPES, TEXTURES

__all__ = ["MOMENTS", "UNCLEAR", "FoundObject", "background_of", "pixels_of", "read"]

Array = np.ndarray

UNCLEAR = "unclear"  # the word for an outline or a colour that is none of the known ones
WORST_MISFIT = 0.15  # of an outline that still counts; true ones reach 0.12 at 16 pixels under noise and blur
FARTHEST_TONE = 90.0  # in RGB (0..255), of a colour that still counts
LARGEST = 48  # pixels along the shorter side; of larger pictures, whole multiples are pooled away first
OBJECT = 70.0  # distance in RGB (0..255) from the background from which a pixel belongs to an object
FAINTEST = 190.0  # least distance of any colour's tone from a light background
SMALLEST = 0.004  # of the picture's pixels; less is a speck
REACH = 3  # pixels around an object that its outline is fitted in
SPECK = 0.08  # a soft mask below this is noise
FINALISTS = 3  # shapes whose outlines are fitted closely
NUDGE = 0.25  # of a pixel, for slopes
CONTRAST = 0.4  # least distance of a texture's tones, as a share of the drawn one
BLURS = (0.0, 0.5, 0.8)  # in pixels; a small model draws soft edges


@attrs.frozen
class FoundObject:
    """An object as read from a picture: its attributes, its centre in [0, 1], radius in shorter sides.

    Shape and colour may be UNCLEAR. `area` is in pixels; `misfit` is the squared difference to the best
    outline as a share of the area, 0 for a perfect one.
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


def read(picture: Array) -> tuple[FoundObject, ...]:
    """The objects in a picture, float (3, H, W) in [-1, 1] or uint8 (H, W, 3), from left to right."""
    pixels = pixels_of(picture)
    background = background_of(pixels)
    difference = pixels - background
    distance = np.sqrt((difference * difference).sum(-1))
    threshold = float(np.clip(0.4 * distance.max(), 25.0, OBJECT))
    labels = _components(distance > threshold)
    names, areas = np.unique(labels[labels > 0], return_counts=True)
    kept = [
        int(name) for name, area in zip(names, areas, strict=True) if area >= max(2, SMALLEST * labels.size)
    ]
    found = [_read_object(pixels, background, labels, name, count=len(kept)) for name in kept]
    return tuple(sorted(found, key=lambda thing: thing.x))


def pixels_of(picture: Array) -> Array:
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
        pixels = (
            pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3).mean((1, 3))
        )
    return pixels


def background_of(pixels: Array) -> Array:
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
            [spread[1:-1, 1:-1], spread[:-2, 1:-1], spread[2:, 1:-1], spread[1:-1, :-2], spread[1:-1, 2:]],
            axis=0,
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
    full = float(np.percentile(distance[inner], 30)) if inner.any() else 0.0
    if inner.sum() < 6:  # too few pixels lie wholly inside
        full = max(full, float(distance[mine].max()), FAINTEST)
    cap = min(full, FAINTEST)
    soft = np.minimum(distance / cap, 1.0)
    soft[soft < SPECK] = 0.0
    fit = _best_fit(
        _Patch(soft, full / cap, near, (top, bottom, left, right), -(-FINE // min(height, width)))
    )

    if inner.sum() >= 6:
        tone = difference[inner].mean(0)
    else:  # from partly covered pixels
        inside, _ = fit.patch.outline(fit.shape, "solid", fit.pose, fit.blur)
        tone = (inside[..., None] * difference).sum((0, 1)) / max(float((inside * inside).sum()), 1e-9)
    colour = _nearest_colour(tone + background[at].mean((0, 1)))
    radius = float(fit.pose[2]) / min(height, width)
    sizes = RADII[min(count, max(RADII))]
    return FoundObject(
        shape=fit.shape if fit.misfit <= WORST_MISFIT else UNCLEAR,
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
        """The share of each pixel inside a shape at pose (x, y, radius), and inside in a second tone."""
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
        _refined(attrs.evolve(fit, blur=blur, misfit=np.inf), steps=3)
        for fit in rough[:FINALISTS]
        if fit.misfit < 0.01 + 3 * rough[0].misfit
        for blur in BLURS
    ]
    return min(fits, key=lambda fit: fit.misfit)


def _first_guess(patch: _Patch, shape: str) -> _Fit:
    """Area and centre of mass of the mask give radius and centre."""
    soft, (top, _, left, _) = patch.soft, patch.window
    area = float(soft.sum())
    unit_area, offset_x, offset_y = MOMENTS[shape]
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
    distances = {}
    for word, tones in COLOURS.items():
        first, second = (np.array(t, dtype=float) for t in tones)
        # the mean of a textured object lies between its two tones
        along = np.clip((tone - first) @ (second - first) / ((second - first) @ (second - first)), 0.0, 0.7)
        distances[word] = float(np.linalg.norm(tone - first - along * (second - first)))
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] <= FARTHEST_TONE else UNCLEAR


def _texture(difference: Array, fit: _Fit, colour: str) -> str:
    """The texture that explains most of the object's pixels, if its tones are about as far apart as drawn."""
    if colour == UNCLEAR:
        return UNCLEAR
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


MOMENTS = _moments()
