"""A released checkpoint (.pth) read as a file from a stranger: nothing that it names is imported or called.

torch writes a zip: one pickle, which `apple_pickle` interprets, and each tensor's bytes as a record beside
it, which are mapped into memory and not copied.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdmkit.errors import WrongInput

from .apple_pickle import ENUMS, SETTINGS, STORAGES, Global, Record, Refused, dotted, kind, ours, unpickle

__all__ = ["Released", "read"]

PICKLE_LIMIT = 4 << 20  # bytes; that of a released network has 150,000
DEPTH_LIMIT, VALUE_LIMIT = 20, 100_000  # of the settings


class Released(NamedTuple):
    """What a released checkpoint holds: tensors by released name, the settings beside them, numbers."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any] | None
    numbers: dict[str, int | float]


def read(path: Path) -> Released:
    """The tensors (mapped, not copied), settings and numbers of a released checkpoint.

    Raises:
        WrongInput: it is no such file, it is damaged, or it holds something that is not read here.
    """
    try:
        records = Records(path)
        found = unpickle(records.pickle(), records.tensor)
        return released(found)
    except Refused as error:
        raise WrongInput(f"{path}: {error}") from None
    except OSError as error:
        raise WrongInput(f"{path}: cannot be read: {error.strerror or error}") from None


def released(found: Any) -> Released:
    state = found.get("state_dict") if isinstance(found, dict) else None
    if not isinstance(state, dict):
        raise Refused("expected a released checkpoint, a dict with 'state_dict', which this has not")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Refused(f"expected tensors by name in 'state_dict', got {kind(value)} for {name!r:.80}")
    settings = plain(found["args"]) if found.get("args") is not None else None
    if not isinstance(settings, dict | None):
        raise Refused(f"expected a table of settings in 'args', got {kind(found['args'])}")
    numbers = {key: value for key, value in found.items() if type(value) in (int, float)}
    return Released(state, settings, numbers)


def plain(value: Any) -> Any:
    """Settings as plain values: records become tables of their fields, enums the names of their members."""
    left = VALUE_LIMIT

    def walk(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > DEPTH_LIMIT or left < 0:
            raise Refused("the settings in 'args' are too deep or too many")
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, list | tuple) and not isinstance(value, Global):
            return [walk(item, depth + 1) for item in value]
        if isinstance(value, Record) and (members := ENUMS.get(ours(value.name))):
            member = value.args[0] if len(value.args) == 1 and type(value.args[0]) is int else None
            if member not in members:
                raise Refused(f"{dotted(value.name)} has no member {value.args!r:.40} that is known here")
            return members[member]
        if isinstance(value, Record) and ours(value.name) in SETTINGS:
            value = value.fields
        if isinstance(value, dict):
            return {str(key): walk(item, depth + 1) for key, item in value.items()}
        raise Refused(f"expected plain settings in 'args', got {kind(value)}")

    return walk(value, 0)


class Records:
    """The records of a torch zip, found by name in the file and mapped into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            try:
                with zipfile.ZipFile(file) as archive:
                    infos = archive.infolist()
            except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
                raise Refused(why_no_zip(start)) from error
        names = [info.filename for info in infos]
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1 or len(set(names)) != len(names):
            raise Refused("expected a torch checkpoint, a zip with one data.pkl and each name once")
        root = roots[0]
        self.by_name = {
            info.filename.removeprefix(root): info for info in infos if info.filename.startswith(root)
        }
        if "byteorder" in self.by_name and self.bytes("byteorder", 16) != b"little":
            raise Refused("its numbers are not little-endian; load and save it on such a machine first")
        self.mapped: Any = None
        self.whole: set[str] = set()  # records whose checksum was compared

    def place(self, name: str) -> tuple[int, int]:
        """Where the bytes of a record start in the file, and how many there are."""
        info = self.by_name.get(name)
        if info is None:
            raise Refused(f"the record {name} is missing")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise Refused(f"the record {name} is compressed or encrypted, which torch never does")
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
        if len(header) != 30 or header[:4] != b"PK\3\4":
            raise Refused(f"the record {name} is not where the zip says; the file is damaged")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        if info.compress_size != info.file_size or start + info.file_size > self.size:
            raise Refused(f"the record {name} ends outside the file; the file is damaged")
        return start, info.file_size

    def bytes(self, name: str, limit: int) -> bytes:
        start, size = self.place(name)
        if size > limit:
            raise Refused(f"the record {name} has {size:,} bytes, more than the {limit:,} that are read")
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(size)
        self.compare(name, data)
        return data

    def compare(self, name: str, data: Any) -> None:
        if zlib.crc32(data) != self.by_name[name].CRC:
            raise Refused(f"the record {name} does not match its checksum; the file is damaged")

    def pickle(self) -> bytes:
        return self.bytes("data.pkl", PICKLE_LIMIT)

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
        """A tensor over the mapped record of its storage; every number of it is checked first."""
        match storage:
            case ("storage", Global(type_name), str(key), str(), int(count)) if type_name in STORAGES:
                dtype = getattr(torch, STORAGES[type_name])
            case _:
                raise Refused("a tensor without a storage of a known type")
        numbers = (count, offset, *size, *stride)
        if any(type(n) is not int or not 0 <= n < 1 << 48 for n in numbers) or len(size) != len(stride):
            raise Refused(f"a tensor over the record data/{key} has an impossible shape")
        start, length = self.place(f"data/{key}")
        if count * dtype.itemsize != length:
            raise Refused(
                f"the record data/{key} has {length:,} bytes, but {count:,} {dtype} numbers are declared"
            )
        numel = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if numel else 0
        # fewer numbers than entries is an expanded tensor: it would grow when it is written
        if last >= max(count, 1) or numel > count or len(size) > 8:
            raise Refused(f"a tensor over the record data/{key} reaches outside of it")
        if start % dtype.itemsize:
            raise Refused(f"the record data/{key} is not aligned; load and save the file with torch first")
        if not numel:
            return torch.empty(size, dtype=dtype)
        if self.mapped is None:
            self.mapped = torch.UntypedStorage.from_file(str(self.path), False, self.size)
        part = self.mapped[start : start + length]
        if key not in self.whole:
            self.compare(f"data/{key}", torch.empty(0, dtype=torch.uint8).set_(part).numpy())
            self.whole.add(key)
        return torch.empty(0, dtype=dtype).set_(part, offset, size, stride)  # pyright: ignore[reportArgumentType]


def why_no_zip(start: bytes) -> str:
    if start[:4] == b"PK\3\4":
        return "the file is cut short or damaged"
    if b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" in start:  # the number that torch's older files begin with
        return "it is in torch's format of before 1.6; load and save it with torch first"
    return "expected a torch checkpoint (a zip), and it is none"
