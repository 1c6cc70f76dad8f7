"""Any dataset as WebDataset shards, optionally at several resolutions and with its text features."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import numpy as np

from mdmkit.errors import MdmkitError, WrongInput

from . import tarindex
from .pictures import as_size, shrink, square_name
from .sample import Batch, Dataset
from .shards import FEATURES

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CaptionEncoder", "Packed", "pack"]

FORMAT = 1


class CaptionEncoder(Protocol):
    """What `pack` asks of a text encoder."""

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Features (B, L, D) and mask (B, L), True at real tokens."""
        ...


@attrs.frozen
class Packed:
    """What `pack` wrote: where, how many samples and shards, and (key, cause) of what it left out."""

    folder: Path
    samples: int
    shards: int
    skipped: tuple[tuple[str, str], ...]


def pack(
    dataset: Dataset,
    out: str | Path,
    *,
    count: int | None = None,
    resolutions: Sequence[int | tuple[int, int]] = (),
    encoder: CaptionEncoder | None = None,
    features_dtype: str = "float16",
    shard_size: int = 1000,
    batch: int = 32,
    workers: int = 0,
    source: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write positions 0 .. count - 1 of a dataset (one epoch where not given) as shards into folder `out`.

    Each sample is a png at the dataset's resolution, a txt, a json (caption, height and width of the
    original, key), a png for each lower one of `resolutions` (area means, "64.png"), and with an `encoder`
    the caption's features and mask up to its last token; those of the empty caption stand once beside the
    shards. Component `webdataset` reads the folder back. Unreadable samples are left out and counted, never
    replaced by others.

    All is written into `out`.partial and renamed at the end; one that was stopped goes on from its last
    whole shard when it is called with the same arguments. `source` says what is packed (a recipe's text):
    where it is another, going on is refused. `progress(done, count)` is called now and then.

    WrongInput where `out` holds files, a resolution is above the dataset's, or the partial folder is
    another pack's.
    """
    try:
        import webdataset  # noqa: F401  # before anything is read
    except ImportError as error:
        raise MdmkitError(f"writing shards needs webdataset ({error}); pip install 'mdmkit[data]'") from error
    from .loader import batches

    out = Path(out).expanduser().absolute()
    if count is None:
        if not hasattr(dataset, "__len__"):
            raise WrongInput("this dataset is endless; say how many samples to pack")
        count = len(dataset)  # type: ignore[arg-type]
    if count < 1 or shard_size < 1 or batch < 1:
        raise ValueError(f"expected count, shard_size and batch >= 1, got {count}, {shard_size}, {batch}")
    plan = {
        "format": FORMAT,
        "count": count,
        "shard_size": shard_size,
        "resolution": list(dataset.resolution),
        "resolutions": [list(lower) for lower in _lower(resolutions, dataset.resolution)],
        "features": features_dtype if encoder is not None else None,
        "source": source,
    }
    partial = _begin(out, plan)
    starts = range(0, count, shard_size)
    width = max(6, len(str(len(starts))))
    tars = [partial / f"shard-{number:0{width}d}.tar" for number in range(len(starts))]
    todo = [(tar, start) for tar, start in zip(tars, starts, strict=True) if not tar.exists()]
    parts = {
        tar: [range(at, min(at + batch, stop)) for at in range(start, stop, batch)]
        for tar, start, stop in ((tar, start, min(start + shard_size, count)) for tar, start in todo)
    }

    def rows(part: Batch) -> Iterator[dict[str, Any]]:
        # a substitute is another sample of the same epoch and would be packed twice
        left_out = {p for p in part.positions if dataset.sample(p).skipped} if part.skipped else set()
        features = _features(part, encoder, features_dtype)
        for row, position in enumerate(part.positions):
            if position not in left_out:
                yield _members(part, row, plan["resolutions"]) | features[row]

    try:
        _write_empty(partial, dataset, encoder, features_dtype)
        everything = [list(part) for shard in parts.values() for part in shard]
        with closing(batches(dataset, everything, workers=workers)) as read:
            for tar, shard in parts.items():
                _write_shard(tar, islice(read, len(shard)), rows)
                if progress:
                    progress(shard[-1].stop, count)
        return _finish(partial, out, tars, plan)
    except OSError as error:
        raise MdmkitError(
            f"{partial}: {error.strerror or error}; the same command goes on from what is written"
        ) from error


def _lower(resolutions: Sequence[int | tuple[int, int]], top: tuple[int, int]) -> list[tuple[int, int]]:
    sizes = sorted({as_size(resolution) for resolution in resolutions} - {top})
    for h, w in sizes:
        if h > top[0] or w > top[1]:
            raise WrongInput(
                f"cannot pack at {h}x{w}: the dataset is read at {top[0]}x{top[1]}, and pack only shrinks"
            )
    return sizes


def _begin(out: Path, plan: dict[str, Any]) -> Path:
    """The partial folder, new or of the same plan."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WrongInput(f"{out}: expected a new or empty folder, found files; pack into another one")
    partial = out.with_name(out.name + ".partial")
    file = partial / "plan.json"
    if file.exists():
        if json.loads(file.read_text("utf-8")) != json.loads(json.dumps(plan)):
            raise WrongInput(f"{partial}: holds part of another pack; delete it, or use its settings")
    elif partial.exists() and any(partial.iterdir()):
        raise WrongInput(f"{partial}: is in the way and not part of a pack; move it")
    else:
        partial.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(plan), "utf-8")
    return partial


def _write_shard(
    tar: Path, parts: Iterable[Batch], rows: Callable[[Batch], Iterable[dict[str, Any]]]
) -> None:
    """One shard, its index, and what it left out; the tar itself appears last."""
    from webdataset.writer import TarWriter

    aside = tar.with_suffix(".tmp")
    skipped = []
    with open(aside, "wb") as file:
        with TarWriter(file, mtime=0.0) as writer:
            for part in parts:
                skipped += part.skipped
                for row in rows(part):
                    writer.write(row)
        file.flush()
        os.fsync(file.fileno())
    if skipped:
        _skipped_file(tar).write_text(json.dumps(skipped), "utf-8")
    tarindex.save(tarindex.scan(aside), tarindex.beside(tar), stamp=tarindex.fingerprint(aside))
    os.replace(aside, tar)


def _members(part: Batch, row: int, resolutions: list[list[int]]) -> dict[str, Any]:
    image = part.images[row].permute(1, 2, 0).contiguous().numpy()
    h, w = (int(side) for side in part.sizes[row])
    caption = part.captions[row]
    lower = {f"{square_name((h, w))}.png": shrink(image, (h, w)) for h, w in resolutions}
    return {
        "__key__": f"{part.positions[row]:09d}",
        "png": image,
        "txt": caption,
        "json": {"caption": caption, "height": h, "width": w, "key": part.keys[row]},
        **lower,
    }


def _features(part: Batch, encoder: CaptionEncoder | None, dtype: str) -> list[dict[str, bytes]]:
    """The features member of each row, or none; a dataset's own stored features are handed on."""
    if encoder is not None:
        return [{FEATURES: stored} for stored in _encode(encoder, part.captions, dtype)]
    if part.features is not None and part.features_mask is not None:
        rows = zip(part.features.numpy(), part.features_mask.numpy(), strict=True)
        return [{FEATURES: _stored(features, mask)} for features, mask in rows]
    return [{} for _ in part.captions]


def _encode(encoder: CaptionEncoder, captions: list[str], dtype: str) -> list[bytes]:
    import torch

    if dtype not in ("float16", "float32"):
        raise ValueError(f'expected features_dtype "float16" or "float32", got {dtype!r}')
    with torch.inference_mode():
        features, mask = encoder.encode(captions)
        stored = features.to("cpu", getattr(torch, dtype))
        if not torch.isfinite(stored).all():
            raise MdmkitError(f"text features do not fit into {dtype}; pack them as float32")
    rows = zip(stored.numpy(), mask.bool().cpu().numpy(), strict=True)
    return [_stored(features, mask) for features, mask in rows]


def _stored(features: np.ndarray, mask: np.ndarray) -> bytes:
    from safetensors.numpy import save

    stop = max(1, int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 0)
    return save({"features": features[:stop].copy(), "mask": mask[:stop].astype(np.uint8)})


def _write_empty(partial: Path, dataset: Dataset, encoder: CaptionEncoder | None, dtype: str) -> None:
    file = partial / f"empty.{FEATURES}"
    if encoder is not None:
        file.write_bytes(_encode(encoder, [""], dtype)[0])
    elif getattr(dataset, "features", False) and hasattr(dataset, "empty_features"):
        file.write_bytes(_stored(*dataset.empty_features()))  # type: ignore[attr-defined]


def _skipped_file(tar: Path) -> Path:
    return tar.with_suffix(".skipped.json")


def _finish(partial: Path, out: Path, tars: list[Path], plan: dict[str, Any]) -> Packed:
    skipped: list[tuple[str, str]] = []
    for tar in tars:
        file = _skipped_file(tar)
        if file.exists():
            skipped += [(key, cause) for key, cause in json.loads(file.read_text("utf-8"))]
    counts = [tarindex.lookup(tar, partial, tarindex.count) or 0 for tar in tars]
    summary = {**plan, "samples": sum(counts), "shards": len(tars), "skipped": skipped}
    (partial / "pack.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False), "utf-8")
    for left in (partial / "plan.json", *map(_skipped_file, tars)):
        left.unlink(missing_ok=True)
    if out.exists():
        out.rmdir()
    os.replace(partial, out)
    return Packed(out, sum(counts), len(tars), tuple(skipped))
