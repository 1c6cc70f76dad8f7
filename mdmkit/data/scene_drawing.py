"""Scenes of coloured shapes into pixels: outlines, textures, anti-aliasing. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .scenes import COLOURS, Background, Scene, SceneObject

__all__ = ["FINE", "OUTLINES", "cover", "draw", "paint"]

CORNER = 1.06  # how far corners reach, in radii
FINE = 64  # least samples along the shorter side, pooled down to the picture's own pixels

Array = np.ndarray


# Distances from the outline, negative inside, over u (to the right) and v (down), in radii of the object.
# Every shape fits the unit circle, but for corners of up to 1.06. Distances are exact at straight and round
# edges, which is all that anti-aliasing needs.


def _circle(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v) - 0.92


def _ring(u: Array, v: Array) -> Array:
    return np.abs(np.sqrt(u * u + v * v) - 0.73) - 0.22


def _square(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - 0.74


def _diamond(u: Array, v: Array) -> Array:
    # half width 0.68, half height 1
    return (np.abs(u) + 0.68 * np.abs(v) - 0.68) / math.hypot(1.0, 0.68)


def _triangle(u: Array, v: Array) -> Array:
    # equilateral, its own centre a little below that of the unit circle
    w = v - 0.14
    return np.maximum(math.sqrt(0.75) * np.abs(u) - 0.5 * w, w) - 0.49


def _cross(u: Array, v: Array) -> Array:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(u, v) - 0.3, np.maximum(u, v) - 0.95)


def _star(u: Array, v: Array) -> Array:
    # five points: fold the plane into half a wedge of 36 degrees, where the outline is one straight edge
    w = v - 0.06
    wedge = math.pi / 5
    angle = np.abs(np.mod(np.arctan2(u, -w) + wedge, 2 * wedge) - wedge)
    length = np.sqrt(u * u + w * w)
    inner = 0.45
    edge_x, edge_y = inner * math.cos(wedge) - 1.0, inner * math.sin(wedge)
    norm = math.hypot(edge_x, edge_y)
    return (edge_y * (length * np.cos(angle) - 1.0) - edge_x * length * np.sin(angle)) / norm


def _heart(u: Array, v: Array) -> Array:
    # two lobes and the wedge that touches both from below: a half heart, mirrored
    u = np.abs(u)
    lobe = np.sqrt((u - 0.44) ** 2 + (v + 0.32) ** 2) - 0.5
    nx, ny = 0.767, 0.642  # normal of the straight edge
    edge = (u - 0.44) * nx + (v + 0.32) * ny - 0.5
    # the edge takes over beyond its touching points, below the line through lobe centre and touching point
    below = np.maximum(edge, (u - 0.44) * ny - (v + 0.32) * nx)
    return np.minimum(lobe, below)


OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "diamond": _diamond,
    "heart": _heart,
    "ring": _ring,
    "cross": _cross,
}


def _second_tone(texture: str, u: Array, v: Array, pixel: float) -> Array:
    """Share of the second tone at each point, 0 to 1, anti-aliased to points of width `pixel` (in radii)."""
    if texture == "striped":
        period = 0.68
        across = np.abs(np.mod((u + v) * math.sqrt(0.5) / period, 1.0) - 0.5) * period - period / 4
        return np.clip(0.5 + across / pixel, 0.0, 1.0)
    if texture == "dotted":
        period = 0.56
        du = np.mod(u / period + 0.5, 1.0) - 0.5
        dv = np.mod(v / period + 0.5, 1.0) - 0.5
        return np.clip(0.5 - (np.sqrt(du * du + dv * dv) * period - 0.17) / pixel, 0.0, 1.0)
    period = 0.92  # checkered: the product of two square waves
    wave_u, wave_v = (
        np.clip((np.abs(np.mod(c / period + 0.25, 1.0) - 0.5) - 0.25) * period * 2 / pixel, -1.0, 1.0)
        for c in (u, v)
    )
    return 0.5 + 0.5 * wave_u * wave_v


def cover(
    shape: str,
    texture: str,
    centre: tuple[float, float],
    radius: float,
    window: tuple[int, int, int, int],
    factor: int,
    angle: float = 0.0,
) -> tuple[Array, Array | None]:
    """How much of each pixel of a window an object covers.

    centre (x, y) and radius in pixels, window (top, bottom, left, right), `factor` samples a pixel and axis,
    turned clockwise by `angle`.
    Returns the share (h, w) that is inside, and the share that is inside in the second tone (None: solid).
    """
    top, bottom, left, right = window
    rows, columns = bottom - top, right - left
    u = ((left - centre[0]) + (np.arange(columns * factor) + 0.5) / factor)[None, :] / radius
    v = ((top - centre[1]) + (np.arange(rows * factor) + 0.5) / factor)[:, None] / radius
    if angle:
        cos, sin = math.cos(angle), math.sin(angle)
        u, v = cos * u + sin * v, cos * v - sin * u
    sample = 1.0 / (radius * factor)
    inside = np.clip(0.5 - OUTLINES[shape](u, v) / sample, 0.0, 1.0)
    second = None if texture == "solid" else inside * _second_tone(texture, u, v, sample)

    def pooled(fine: Array) -> Array:
        return fine if factor == 1 else fine.reshape(rows, factor, columns, factor).mean((1, 3))

    return pooled(inside), None if second is None else pooled(second)


def draw(scene: Scene, resolution: tuple[int, int]) -> Array:
    """The picture of a scene, uint8 (h, w, 3), anti-aliased: as a finer drawing of it, average-pooled."""
    return paint(scene.objects, scene.background, resolution)


def paint(objects: Sequence[SceneObject], background: Background, resolution: tuple[int, int]) -> Array:
    """Objects on a background, uint8 (h, w, 3), the later ones over the earlier; as in `draw`."""
    height, width = resolution
    factor = -(-FINE // min(height, width))
    start, end, (along_x, along_y) = background
    picture = np.empty((height, width, 3))
    picture[:] = start
    if end != start:
        ramp_x = along_x * ((np.arange(width) + 0.5) / width - 0.5)
        ramp_y = along_y * ((np.arange(height) + 0.5) / height - 0.5)
        ramp = 0.5 + ramp_x[None, :] + ramp_y[:, None]
        picture += ramp[..., None] * (np.array(end) - np.array(start))
    for thing in objects:
        x, y, radius = thing.x * width, thing.y * height, thing.radius * min(height, width)
        reach = radius * CORNER if thing.angle else radius
        top, bottom = max(math.floor(y - reach), 0), min(math.ceil(y + reach), height)
        left, right = max(math.floor(x - reach), 0), min(math.ceil(x + reach), width)
        window = (top, bottom, left, right)
        inside, second = cover(thing.shape, thing.texture, (x, y), radius, window, factor, thing.angle)
        first_tone, second_tone = COLOURS[thing.colour]
        patch = picture[top:bottom, left:right]
        patch += inside[..., None] * (np.array(first_tone) - patch)
        if second is not None:
            patch += second[..., None] * (np.array(second_tone, dtype=float) - np.array(first_tone))
    return np.floor(np.clip(picture, 0.0, 255.0) + 0.5).astype(np.uint8)
