"""A released checkpoint (.pth) read as a file from a stranger: nothing that it names is imported or called.

torch writes a zip: one pickle, and each tensor's bytes as a record beside it. The pickle is not given to
`pickle`. A short interpreter of its opcodes makes plain values of it, tensors over the mapped file, and inert
`Record`s of the objects that it names; a name or an opcode that is not on the lists below is refused.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import attrs
import torch
from torch import Tensor

from mdmkit.errors import WrongInput

__all__ = ["Record", "Released", "read", "unpickle"]

PICKLE_LIMIT = 4 << 20  # bytes; that of a released network has 150,000
DEPTH_LIMIT, VALUE_LIMIT = 20, 100_000  # of the settings

DTYPES = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch DoubleStorage": torch.float64,
    "torch LongStorage": torch.int64,
}
TENSOR = "torch._utils _rebuild_tensor_v2"
ORDERED = "collections OrderedDict"
# the numbers that the released trainer keeps are numpy's
NUMPY = {"numpy dtype", "numpy.core.multiarray scalar", "numpy._core.multiarray scalar", "_codecs encode"}
ENUMS = {
    "samplers ScheduleType": {0: "COSINE", 2: "DDPM", 3: "DEEPFLOYD", 4: "SIGMOID"},
    "samplers PredictionType": {3: "DDPM", 4: "DDIM", 5: "V_PREDICTION"},
    "samplers ThresholdType": {0: "NONE", 1: "CLIP", 2: "DYNAMIC", 3: "DYNAMIC_IF"},
}
SETTINGS = {
    "argparse Namespace",
    "samplers SamplerConfig",
    "reader ReaderConfig",
    "diffusion DiffusionConfig",
    "diffusion NestedDiffusionConfig",
    "models.unet ResNetConfig",
    "models.unet UNetConfig",
    *(f"models.nested_unet Nested{count}UNetConfig" for count in ("", 2, 3, 4)),
}


class Global(NamedTuple):
    """The name of something, "module name", that a pickle would have imported; only ever a name here."""

    name: str


@attrs.define(eq=False)
class Record:
    """An object of a pickle, never made: its class's name, what it was called with, its fields."""

    name: str
    args: tuple[Any, ...] = ()
    fields: dict[str, Any] = attrs.field(factory=dict)


class Released(NamedTuple):
    """What a released checkpoint holds: tensors by released name, the settings beside them, numbers."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any] | None
    numbers: dict[str, int | float]


class Refused(Exception):
    """Something in the file that is not read here; the text says what."""


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


def ours(name: str) -> str:
    """A name under the shorter of the two spellings in use."""
    return name.removeprefix("ml_mdm.")


def dotted(name: str) -> str:
    return name.replace(" ", ".")


def kind(value: Any) -> str:
    return dotted(value.name) if isinstance(value, Record | Global) else type(value).__name__


# the zip


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
            case ("storage", Global(type_name), str(key), str(), int(count)) if type_name in DTYPES:
                dtype = DTYPES[type_name]
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


# the pickle

MakeTensor = Callable[..., Tensor]
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG", "BINFLOAT", "FLOAT"}
VALUES |= {"BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def unpickle(data: bytes, tensor: MakeTensor) -> Any:
    """What a pickle holds: plain values, Records, and what `tensor` makes of the parts of a tensor.

    Raises Refused for every name and opcode that is not on the lists, and where the pickle is damaged.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int) -> list[Any]:
        if len(stack) - (marks[-1] if marks else 0) < count:
            raise IndexError
        taken = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return taken

    def pop_mark() -> list[Any]:
        taken = stack[marks[-1] :]
        del stack[marks.pop() :]
        return taken

    try:
        for opcode, arg, _ in pickletools.genops(data):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return pop(1)[0]
                case "MARK":
                    marks.append(len(stack))
                case name if name in VALUES:
                    stack.append(arg)
                case name if name in CONSTANTS:
                    stack.append(CONSTANTS[name])
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "TUPLE":
                    stack.append(tuple(pop_mark()))
                case name if name in TUPLES:
                    stack.append(tuple(pop(TUPLES[name])))
                case "APPEND":
                    append(stack[-2], pop(1))
                case "APPENDS":
                    items = pop_mark()
                    append(stack[-1], items)
                case "SETITEM":
                    set_items(stack[-3], pop(2))
                case "SETITEMS":
                    items = pop_mark()
                    set_items(stack[-1], items)
                case "BINPUT" | "LONG_BINPUT":
                    memo[arg] = stack[-1]  # pyright: ignore[reportArgumentType]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[arg])  # pyright: ignore[reportArgumentType]
                case "GLOBAL":
                    stack.append(allowed(arg))
                case "STACK_GLOBAL":
                    stack.append(allowed(" ".join(pop(2))))
                case "REDUCE" | "NEWOBJ":
                    what, args = pop(2)
                    stack.append(made(what, args, tensor))
                case "BUILD":
                    state = pop(1)[0]
                    build(stack[-1], state)
                case "BINPERSID":
                    pass  # the parts of a storage stay as they are, `tensor` looks at them
                case name:
                    if name == "INST":
                        allowed(arg)
                    raise Refused(f"the pickle has the opcode {name}, which is not read here")
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error, MemoryError) as error:
        raise Refused(f"the pickle inside is damaged ({type(error).__name__})") from error
    raise Refused("the pickle inside is cut short")


def allowed(name: Any) -> Global:
    known = name in DTYPES or name in NUMPY or name in (TENSOR, ORDERED)
    if not known and ours(name) not in ENUMS and ours(name) not in SETTINGS:
        refuse(name)
    return Global(name)


def refuse(name: str) -> NoReturn:
    shown = "".join(c if c.isprintable() else "?" for c in dotted(name))
    raise Refused(f"it names {shown:.120}, which a released checkpoint has no need of; nothing was run")


def made(what: Any, args: Any, tensor: MakeTensor) -> Any:
    """What stands for the call of a name with arguments."""
    if not isinstance(what, Global) or not isinstance(args, tuple):
        raise Refused(f"the pickle calls {kind(what)}, which is not a name")
    if what.name == TENSOR:
        return tensor(*args)
    if what.name == ORDERED:
        if args:
            raise Refused("an OrderedDict with arguments")
        return {}
    if what.name in DTYPES:
        refuse(what.name)
    return Record(what.name, args)


def build(target: Any, state: Any) -> None:
    if isinstance(target, Record) and isinstance(state, dict) and all(isinstance(key, str) for key in state):
        target.fields.update(state)
    elif isinstance(target, dict) and isinstance(state, dict) and state.keys() <= {"_metadata"}:
        pass  # what a state dict knows about its modules
    elif not (isinstance(target, Record) and target.name in NUMPY):
        raise Refused(f"the pickle gives {kind(target)} a state of {kind(state)}, which is not read here")


def append(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise Refused(f"the pickle appends to {kind(target)}")
    target += items


def set_items(target: Any, items: list[Any]) -> None:
    if type(target) is not dict:
        raise Refused(f"the pickle sets items of {kind(target)}")
    for key, value in pairs(items):
        # a tuple as a key is hashed by recursion, which a deep one takes past the end of the C stack
        if type(key) not in (str, int):
            raise Refused(f"the pickle has a key of type {kind(key)}")
        target[key] = value


def pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)
