"""Batteries of what stands at the ends of a run: datasets, metrics, loggers."""

from __future__ import annotations

import inspect
import math
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .sampling import grey_denoiser, two_levels
from .subject import Subject, load

__all__ = ["dataset", "logger", "metric"]

RESOLUTION = (16, 24)


def dataset(it: Subject) -> None:
    """A sample is a function of (settings, seed, position), in any order, in any process, without end."""
    height, width = it.context.get("resolution", RESOLUTION)
    source = it.build(seed=0, resolution=RESOLUTION)
    positions = [5, 0, 1, 2, 3, 10**6]
    seen = {p: it.attempt(f"sample({p})", lambda: source.sample(p)) for p in positions}  # noqa: B023
    for position, sample in seen.items():
        where = f"sample({position})"
        image = sample.image
        it.must(
            isinstance(image, np.ndarray), f"{where}.image is a {type(image).__name__}, not a NumPy array"
        )
        it.must(
            image.dtype == np.uint8 and image.shape == (height, width, 3),
            f"{where}.image is {image.dtype} {image.shape}, expected uint8 {(height, width, 3)}",
        )
        it.must(
            isinstance(sample.caption, str),
            f"{where}.caption is a {type(sample.caption).__name__}, not a str",
        )
        it.must(
            isinstance(sample.key, str) and sample.key, f"{where}.key is {sample.key!r}, expected a string"
        )
        size = tuple(sample.size)
        it.must(
            len(size) == 2 and min(size) > 0,
            f"{where}.size is {size}, expected the original's (height, width)",
        )
    others = (
        (source, "the second time"),
        (it.build(seed=0, resolution=RESOLUTION), "from a fresh dataset"),
        (
            it.attempt("pickling it for data workers", lambda: pickle.loads(pickle.dumps(source))),
            "in a data worker",
        ),
    )
    for other, when in others:
        for position in reversed(positions):
            if not _same(seen[position], other.sample(position)):
                it.breaks(f"sample({position}) differs {when}; it must be a function of (seed, position)")
    it.must(
        tuple(source.resolution) == (height, width),
        f"resolution is {source.resolution}, not what was asked for",
    )


    target = it.component.target
    if target is not None and "frames" in inspect.signature(load(target)).parameters:
        _clips(it, height, width)


def _clips(it: Subject, height: int, width: int) -> None:
    """Told `frames`, a dataset gives clips of so many, one frame among them, and they have a time."""
    for frames in (1, 3):
        source = it.build(seed=0, resolution=RESOLUTION, frames=frames)
        sample = it.attempt(f"sample(2) of {frames} frames", lambda: source.sample(2))  # noqa: B023
        it.must(
            sample.image.dtype == np.uint8 and sample.image.shape == (frames, height, width, 3),
            f"sample(2).image is {sample.image.dtype} {sample.image.shape}, expected uint8 "
            f"{(frames, height, width, 3)} when it is told frames={frames}",
        )
        it.must(
            sample.fps is None or sample.fps > 0, f"sample(2).fps is {sample.fps!r}, expected frames a second"
        )
        again = it.build(seed=0, resolution=RESOLUTION, frames=frames)
        it.must(
            _same(sample, it.attempt("sample(2) from a fresh dataset", lambda: again.sample(2))),  # noqa: B023
            "sample(2) of a clip differs from a fresh dataset; it must be a function of (seed, position)",
        )


def _same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(a.image, b.image)) and (a.caption, a.key, tuple(a.size)) == (
        b.caption,
        b.key,
        tuple(b.size),
    )


def metric(it: Subject) -> None:
    """What it is shown accumulates, in whatever batches it comes, to finite numbers with names."""
    whole = it.build(device="cpu")
    shown = [name for name in ("update", "examine") if callable(getattr(whole, name, None))]
    it.must(
        len(shown) == 1,
        "needs either update(pictures, captions), for drawn pictures, or examine(...), for the network",
    )
    show = {"update": _update, "examine": _examine}[shown[0]]
    it.attempt(shown[0], lambda: show(whole, slice(None)))
    numbers = it.attempt("result()", whole.result)
    it.must(isinstance(numbers, dict) and numbers, f"result() is {numbers!r}, expected numbers by name")
    for name, number in numbers.items():
        it.must(isinstance(name, str), f"result() has a name that is no string: {name!r}")
        it.must(
            isinstance(number, float) and math.isfinite(number),
            f"result()[{name!r}] is {number!r}, expected a finite float",
        )
    it.must(whole.result() == numbers, "result() differs the second time")
    parts = it.build(device="cpu")
    for rows in (slice(0, 1), slice(1, 4)):
        show(parts, rows)
    for name, number in it.attempt("result()", parts.result).items():
        it.must(
            math.isclose(number, numbers.get(name, math.nan), rel_tol=1e-3, abs_tol=1e-6),
            f"result()[{name!r}] depends on the batches: {number!r} or {numbers.get(name)!r}",
        )


def _update(metric: Any, rows: slice) -> None:
    captions = ["a small red circle", "a large blue star", "a large green square", "a small yellow circle"]
    pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    metric.update(pictures[rows], captions[rows])
    if callable(getattr(metric, "beside", None)):
        metric.beside(pictures.flip(0)[rows] / 2)


def _examine(metric: Any, rows: slice) -> None:
    top = torch.randint(256, (4, 3, 8, 12), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    pictures = load("mdmkit.pyramid:pyramid")(top[rows], [(4, 6), (8, 12)])
    metric.examine(grey_denoiser(), two_levels(), pictures, list(range(4))[rows])


def logger(it: Subject) -> None:
    """Numbers are in the run folder once it is closed; closing twice is safe, and so is going on."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        sink = it.build(run_dir=run_dir)
        it.attempt("log(step, metrics)", lambda: sink.log(1, {"loss": 0.5, "loss.0": 0.5}))
        it.attempt("log of a NaN", lambda: sink.log(2, {"loss": math.nan, "lr": 1e-4}))
        before = _bytes(run_dir)
        picture = Image.new("RGB", (8, 6), (255, 0, 0))
        it.attempt("images(step, name, picture)", lambda: sink.images(2, "samples", picture))
        it.attempt("close()", sink.close)
        it.must(_bytes(run_dir) > 0, "log() and close() leave nothing in the run folder")
        it.must(_bytes(run_dir) >= before, "close() loses what was logged")
        it.attempt("close() for the second time", sink.close)
        resumed = it.build(run_dir=run_dir)
        it.attempt("log() in the folder of an earlier run", lambda: resumed.log(2, {"loss": 0.4}))
        it.attempt("close()", resumed.close)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
