"""The pickle inside a released checkpoint, interpreted and never run: nothing that it names is imported.

The pickle is not given to `pickle`. A short interpreter of its opcodes makes plain values of it, inert
`Record`s of the objects that it names, and hands the parts of each tensor to a function of ours. A name or an
opcode that is not on the lists below is refused.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import attrs

__all__ = ["ENUMS", "SETTINGS", "STORAGES", "Global", "Record", "Refused", "dotted", "kind", "ours"]
__all__ += ["unpickle"]

# numbers of these types, by the name of the storage that holds them
STORAGES = {
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch DoubleStorage": "float64",
    "torch LongStorage": "int64",
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


class Refused(Exception):
    """Something in the file that is not read here; the text says what."""


def ours(name: str) -> str:
    """A name under the shorter of the two spellings in use."""
    return name.removeprefix("ml_mdm.")


def dotted(name: str) -> str:
    return name.replace(" ", ".")


def kind(value: Any) -> str:
    return dotted(value.name) if isinstance(value, Record | Global) else type(value).__name__


MakeTensor = Callable[..., Any]
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG", "BINFLOAT", "FLOAT"}
VALUES |= {"BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
READ = {
    *("PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "EMPTY_LIST", "TUPLE", "APPEND", "APPENDS", "SETITEM"),
    *("SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL"),
    *("REDUCE", "NEWOBJ", "BUILD", "BINPERSID", *VALUES, *CONSTANTS, *TUPLES),
}
OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


def instructions(data: bytes) -> Iterator[tuple[str, Any]]:
    """The name and the argument of each opcode; one that is not read is refused before its argument is."""
    file = io.BytesIO(data)

    def line() -> str:
        text = file.readline()
        if not text.endswith(b"\n"):
            raise ValueError("cut short")
        return text[:-1].decode("utf-8")  # and nothing more: pickletools would resolve escapes

    while code := file.read(1):
        opcode = OPCODES.get(code)
        if opcode is None:
            raise ValueError("no opcode")
        name = opcode.name
        if name == "INST":
            allowed(f"{line()} {line()}")
        if name not in READ:
            raise Refused(f"the pickle has the opcode {name}, which is not read here")
        if name == "GLOBAL":
            yield name, f"{line()} {line()}"
        else:
            yield name, opcode.arg.reader(file) if opcode.arg else None


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
        for name, arg in instructions(data):
            match name:
                case "PROTO" | "FRAME" | "BINPERSID":
                    pass  # the parts of a storage stay as they are, `tensor` looks at them
                case "STOP":
                    return pop(1)[0]
                case "MARK":
                    marks.append(len(stack))
                case _ if name in VALUES:
                    stack.append(arg)
                case _ if name in CONSTANTS:
                    stack.append(CONSTANTS[name])
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "TUPLE":
                    stack.append(tuple(pop_mark()))
                case _ if name in TUPLES:
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
                    memo[arg] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[arg])
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
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error, MemoryError) as error:
        raise Refused(f"the pickle inside is damaged ({type(error).__name__})") from error
    raise Refused("the pickle inside is cut short")


def allowed(name: Any) -> Global:
    known = name in STORAGES or name in NUMPY or name in (TENSOR, ORDERED)
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
    if what.name in STORAGES:
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
    for key, value in zip(items[::2], items[1::2], strict=True):
        # a tuple as a key is hashed by recursion, which a deep one takes past the end of the C stack
        if type(key) not in (str, int):
            raise Refused(f"the pickle has a key of type {kind(key)}")
        target[key] = value
