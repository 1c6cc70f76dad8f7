"""Batteries of what stands at the ends of a run: datasets, metrics, loggers."""

from __future__ import annotations

import math
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .subject import Subject

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


def _same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(a.image, b.image)) and (a.caption, a.key, tuple(a.size)) == (
        b.caption,
        b.key,
        tuple(b.size),
    )


def metric(it: Subject) -> None:
    """Pictures accumulate, in whatever batches they come, to finite numbers with names."""
    captions = ["a small red circle", "a large blue star", "a large green square", "a small yellow circle"]
    pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = it.build(device="cpu")
    it.attempt("update(pictures, captions)", lambda: whole.update(pictures, captions))
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
        parts.update(pictures[rows], captions[rows])
    for name, number in it.attempt("result()", parts.result).items():
        it.must(
            math.isclose(number, numbers.get(name, math.nan), rel_tol=1e-3, abs_tol=1e-6),
            f"result()[{name!r}] depends on the batches: {number!r} or {numbers.get(name)!r}",
        )


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
