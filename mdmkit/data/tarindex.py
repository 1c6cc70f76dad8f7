"""Where each sample's members stand inside a tar, so that any of them is one read away."""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import attrs
import numpy as np

from mdmkit.errors import MdmkitError

from .fetch import locked

__all__ = ["TarIndex", "beside", "count", "fingerprint", "load", "lookup", "make", "save", "scan", "state"]

Found = TypeVar("Found")
FORMAT = 1


@attrs.frozen(eq=False)
class TarIndex:
    """The members of a tar by sample and extension.

    `keys`: one a sample. `extensions`: every different one, lower case. `spans` int64 (samples, extensions,
    2): offset and size in bytes, offset -1 where a sample has no such member.
    """

    keys: np.ndarray
    extensions: tuple[str, ...]
    spans: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def members(self, row: int) -> dict[str, tuple[int, int]]:
        """Extension -> (offset, size) of one sample."""
        spans = self.spans[row].tolist()
        return {ext: (at, size) for ext, (at, size) in zip(self.extensions, spans, strict=True) if at >= 0}


def scan(path: Path) -> TarIndex:
    """The index of a tar, by reading its headers.

    Members of one name up to the first dot that follow each other are one sample, as WebDataset has it;
    where an extension comes again, the next sample of the same key begins. OSError or tarfile.TarError
    where it is no tar, compressed, or cut off.
    """
    from webdataset.tariterators import base_plus_ext

    samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    with tarfile.open(path, "r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else the headers of a large shard stay in memory
            key, ext = base_plus_ext(member.name.removeprefix("./"))
            hidden = os.path.basename(member.name).startswith(".")
            if key is None or ext is None or hidden or not member.isreg():
                continue
            if not samples or samples[-1][0] != key or ext.lower() in samples[-1][1]:
                samples.append((key, {}))
            samples[-1][1][ext.lower()] = (member.offset_data, member.size)
    extensions = sorted({ext for _, members in samples for ext in members})
    column = {ext: i for i, ext in enumerate(extensions)}
    spans = np.full((len(samples), len(extensions), 2), -1, dtype=np.int64)
    for row, (_, members) in enumerate(samples):
        for ext, span in members.items():
            spans[row, column[ext]] = span
    return TarIndex(np.array([key for key, _ in samples], dtype=np.str_), tuple(extensions), spans)


def beside(path: Path) -> Path:
    """Where `pack` leaves the index of a tar."""
    return path.with_name(path.name + ".index.npz")


def fingerprint(path: Path) -> str:
    """A hash of a file's size, first and last 64 KiB: cheap, and unmoved by copying to another machine."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(1 << 16)
        file.seek(max(0, size - (1 << 16)))
        return blake2b(b"%d" % size + head + file.read(), digest_size=16).hexdigest()


def save(index: TarIndex, where: Path, *, stamp: str) -> None:
    """Write an index, aside and renamed; `stamp` says of which state of the tar it is."""
    aside = where.with_name(f"{where.name}.{os.getpid()}.tmp")
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            np.savez_compressed(
                file,
                format=np.array(FORMAT),
                stamp=np.array(stamp),
                count=np.array(len(index)),
                keys=index.keys,
                extensions=np.array(index.extensions, dtype=np.str_),
                spans=index.spans,
            )
        os.replace(aside, where)
    except OSError as error:
        raise MdmkitError(
            f"{where}: the index of a shard cannot be written: {error.strerror or error}"
        ) from error


def load(where: Path, *, stamp: str) -> TarIndex | None:
    """An index written by `save`, or None where there is none, or it is of another state of the tar."""
    data = _read(where, stamp, ("keys", "extensions", "spans"))
    if data is None:
        return None
    return TarIndex(data["keys"], tuple(str(ext) for ext in data["extensions"]), data["spans"])


def count(where: Path, *, stamp: str) -> int | None:
    """The number of samples in an index written by `save`, without reading it whole; None as in `load`."""
    data = _read(where, stamp, ("count",))
    return None if data is None else int(data["count"])


def _read(where: Path, stamp: str, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    try:
        # opened here: NumPy leaves a broken file open
        with open(where, "rb") as file, np.load(file, allow_pickle=False) as data:
            if int(data["format"]) != FORMAT or str(data["stamp"]) != stamp:
                return None
            return {name: data[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None  # not there, half a file, or another program's: made again


def lookup(shard: Path, cache: Path, read: Callable[..., Found | None] = load) -> Found | None:
    """What `read` (load or count) finds for a shard: beside it where `pack` left that, else in the cache."""
    if beside(shard).is_file():
        found = read(beside(shard), stamp=fingerprint(shard))
        if found is not None:
            return found
    return read(_kept(shard, cache), stamp=state(shard))


def make(shard: Path, cache: Path) -> TarIndex:
    """The shard's index, made and kept in the cache if it is not there; as in `scan` where that fails."""
    where, stamp = _kept(shard, cache), state(shard)
    with locked(where):
        index = load(where, stamp=stamp)  # another rank may have been first
        if index is None:
            index = scan(shard)
            save(index, where, stamp=stamp)
    return index


def _kept(shard: Path, cache: Path) -> Path:
    return cache / "index" / f"{blake2b(str(shard).encode(), digest_size=12).hexdigest()}.npz"


def state(shard: Path) -> str:
    """What changes when a shard does: its size and time of change."""
    status = shard.stat()
    return f"{status.st_size} {status.st_mtime_ns}"
