"""Where each sample's members stand inside a tar, so that any of them is one read away."""

from __future__ import annotations

import os
import tarfile
import tempfile
from hashlib import blake2b
from pathlib import Path

import attrs
import numpy as np

from mdmkit.errors import MdmkitError

__all__ = ["TarIndex", "beside", "fingerprint", "load", "save", "scan"]

FORMAT = 1


@attrs.frozen(eq=False)
class TarIndex:
    """The members of a tar by sample and extension.

    `keys`: one a sample. `extensions`: every different one, lower case. `spans` int64 (samples, extensions, 2): offset
    and size in bytes, offset -1 where a sample has no such member.
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

    Members of one name up to the first dot that follow each other are one sample, as WebDataset has it; where an
    extension comes again, the next sample of the same key begins. OSError or tarfile.TarError where it is no tar,
    compressed, or cut off.
    """
    from webdataset.tariterators import base_plus_ext

    samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    with tarfile.open(path, "r:") as tar:
        for count, member in enumerate(tar):
            if count % 1000 == 0:
                tar.members.clear()  # type: ignore[attr-defined]  # else every header of a large shard stays in memory
            key, ext = base_plus_ext(member.name.removeprefix("./"))
            if not member.isreg() or key is None or ext is None or os.path.basename(member.name).startswith("."):
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
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=where.parent, suffix=".tmp", delete=False) as file:
            try:
                np.savez_compressed(
                    file,
                    format=np.array(FORMAT),
                    stamp=np.array(stamp),
                    keys=index.keys,
                    extensions=np.array(index.extensions, dtype=np.str_),
                    spans=index.spans,
                )
                file.close()
                os.replace(file.name, where)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise MdmkitError(f"{where}: the index of a shard cannot be written: {error.strerror or error}") from error


def load(where: Path, *, stamp: str) -> TarIndex | None:
    """An index written by `save`, or None where there is none, or it is of another state of the tar."""
    try:
        with np.load(where, allow_pickle=False) as data:
            if int(data["format"]) != FORMAT or str(data["stamp"]) != stamp:
                return None
            return TarIndex(data["keys"], tuple(str(ext) for ext in data["extensions"]), data["spans"])
    except (OSError, ValueError, KeyError, EOFError):
        return None  # half-written or from another program: made again
    except Exception as error:
        if type(error).__module__ == "zipfile":
            return None
        raise
