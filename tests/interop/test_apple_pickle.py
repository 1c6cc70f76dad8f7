"""Pickles from strangers: whatever they name, nothing is imported and nothing runs."""

from __future__ import annotations

import argparse
import builtins
import contextlib
import copyreg
import importlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._utils import _rebuild_tensor_v2

from mdmkit.errors import WrongInput
from mdmkit.interop.apple_file import read, released
from mdmkit.interop.apple_pickle import Record, Refused, unpickle

CANARY, MODULE = "canary", "leaves_canary"
CODE = f"open({CANARY!r}, 'w').close()"


class Call:
    """An object whose pickle is a call."""

    def __init__(self, what: Any, *args: Any, state: Any = None) -> None:
        self.what, self.args, self.state = what, args, state

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.what, self.args) if self.state is None else (self.what, self.args, self.state)


# calls that leave the canary behind when the pickle is loaded as pickles are
LIVE: dict[str, Call] = {
    "os.system": Call(os.system, f"touch {CANARY}"),
    "builtins.eval": Call(eval, CODE),
    "builtins.exec": Call(exec, CODE),
    "builtins.open": Call(open, CANARY, "w"),
    "subprocess.check_call": Call(subprocess.check_call, ["touch", CANARY]),
    "subprocess.Popen": Call(subprocess.Popen, ["touch", CANARY]),
    "shutil.copy": Call(shutil.copy, __file__, CANARY),
    "pickle.loads": Call(pickle.loads, pickle.dumps(Call(exec, CODE))),
    "importlib.import_module": Call(importlib.import_module, MODULE),
}


def places(evil: Any) -> dict[str, Any]:
    """A checkpoint with something in each of the places that a stranger may choose."""
    tensor = torch.arange(4.0)
    good: dict[str, Any] = {"state_dict": OrderedDict(a=tensor), "batch_num": 1}
    namespace = argparse.Namespace(lr=1.0, unet_config={"resolution_channels": [32, evil]})
    slotted = Call(argparse.Namespace, state=(None, {"lr": evil}))
    return {
        "the whole": evil,
        "beside the tensors": {**good, "epoch": evil},
        "a list in the settings": {**good, "args": {"file_list": [1, [evil]]}},
        "a field of the namespace": {**good, "args": argparse.Namespace(lr=evil)},
        "deep in the namespace": {**good, "args": namespace},
        "the state of the namespace": {**good, "args": Call(argparse.Namespace, state={"x": evil})},
        "the slots of the namespace": {**good, "args": slotted},
        "an argument of the namespace": {**good, "args": Call(argparse.Namespace, evil)},
        "a tensor": {**good, "state_dict": OrderedDict(a=tensor, b=evil)},
        "the state dict": {**good, "state_dict": evil},
        "an entry of a tensor's size": {
            **good,
            "state_dict": {
                "a": Call(_rebuild_tensor_v2, tensor._typed_storage(), 0, (evil,), (1,))
            },
        },
        "a tensor's hooks": {
            **good,
            "state_dict": {
                "a": Call(
                    _rebuild_tensor_v2,
                    tensor._typed_storage(),
                    0,
                    (4,),
                    (1,),
                    False,
                    OrderedDict(a=evil),
                )
            },
        },
        "the arguments of an ordered dict": {**good, "state_dict": Call(OrderedDict, [("a", evil)])},
    }


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own, with a module that leaves the canary when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{MODULE}.py").write_text(CODE)
    yield
    sys.modules.pop(MODULE, None)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:TypedStorage is deprecated:UserWarning")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", places(None))
@pytest.mark.parametrize("name", LIVE)
def test_nothing_runs(name: str, place: str, protocol: int):
    torch.save(places(LIVE[name])[place], "evil.pth", pickle_protocol=protocol)
    with pytest.raises(WrongInput) as caught:
        read(Path("evil.pth"))
    assert not Path(CANARY).exists()
    said = str(caught.value)
    assert "\n" not in said
    assert "it names " in said
    assert name.rpartition(".")[2] in said


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", LIVE)
def test_the_calls_are_live(name: str):
    """The control: as pickles are loaded everywhere else, each of these does leave the canary."""
    done = pickle.loads(pickle.dumps(LIVE[name], protocol=2))
    if isinstance(done, subprocess.Popen):
        done.wait()
    if isinstance(done, io.IOBase):
        done.close()
    assert Path(CANARY).exists()


def globals_of(*lines: str) -> bytes:
    """A pickle of globals in a list."""
    return b"\x80\x02](" + b"".join(f"c{line}\n".encode() for line in lines) + b"e."


@pytest.mark.parametrize(
    "name",
    [
        *("os\nsystem", "posix\nsystem", "builtins\neval", "builtins\ngetattr", "__builtin__\neval"),
        *("copyreg\n_reconstructor", "copy_reg\n_reconstructor", "copyreg\n__newobj__"),
        *(
            "torch\nload",
            "torch.storage\n_load_from_bytes",
            "torch\nUntypedStorage",
            "torch._utils\n_rebuild_tensor",
        ),
        *("torch._utils\n_rebuild_parameter", "torch.nn.modules.linear\nLinear", "numpy\nload"),
        *(
            "argparse\nFileType",
            "argparse\n_sys.modules",
            "samplers\n__builtins__",
            "ml_mdm.samplers\nSampler",
        ),
        *("samplers\nSamplerConfig.__init__", "ml_mdm.ml_mdm.samplers\nScheduleType", "collections\nCounter"),
        *("models.unet\nUNet", "collections OrderedDict\nx", "functools\npartial", "operator\nattrgetter"),
    ],
)
def test_a_name_outside_the_list_is_refused_by_name(name: str):
    before = set(sys.modules)
    with pytest.raises(Refused) as caught:
        unpickle(globals_of("collections\nOrderedDict", name), Record)
    dotted = name.replace("\n", ".").replace(" ", ".")
    assert str(caught.value).startswith(f"it names {dotted}, which a released checkpoint has no need of;")
    module, _, attribute = name.partition("\n")
    made = (
        b"\x80\x04" + b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, attribute)) + b"\x93."
    )
    with pytest.raises(Refused, match="it names "):
        unpickle(made, Record)
    assert set(sys.modules) == before


def test_names_with_line_ends_and_escapes_stay_on_one_line():
    made = b"\x80\x04\x8c\x02os\x8c\x0bsys\n\x1b[2Jtem\x93."
    with pytest.raises(Refused) as caught:
        unpickle(made, Record)
    assert str(caught.value).startswith("it names os.sys??[2Jtem, which")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02(ios\nsystem\n.", "it names os.system"),
        (b"\x80\x02(icollections\nOrderedDict\n.", "the opcode INST"),
        (b"\x80\x02(icollections\nOrderedDict", "damaged (ValueError)"),
        (b"\x80\x02ccollections\nOrdered\\x44ict\n.", "it names collections.Ordered\\x44ict"),
        (b"\x80\x02S'\\q'\n.", "the opcode STRING"),
        (b"\x80\x02V\\u0041\n.", "the opcode UNICODE"),
        (b"\x80\x02\xff.", "damaged (ValueError)"),
        (b"\x80\x02(ccollections\nOrderedDict\no.", "the opcode OBJ"),
        (b"\x80\x02\x82\x01.", "the opcode EXT1"),
        (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "the opcode NEWOBJ_EX"),
        (b"\x80\x02P123\n.", "the opcode PERSID"),
        (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", "the opcode BYTEARRAY8"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "it names torch.FloatStorage"),
        (b"\x80\x02ccollections\nOrderedDict\n)R)R.", "the pickle calls dict, which is not a name"),
        (b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "an OrderedDict with arguments"),
        (b"\x80\x02}}b.", None),
        (b"\x80\x02]}b.", "gives list a state of dict"),
        (b"\x80\x02cargparse\nNamespace\n}b.", "gives argparse.Namespace a state of dict"),
        (b"\x80\x02cargparse\nNamespace\n)R)b.", "gives argparse.Namespace a state of tuple"),
        (b"\x80\x02cargparse\nNamespace\n)R}K\x01K\x02sb.", "gives argparse.Namespace a state of dict"),
        (b"\x80\x02})K\x01s.", "a key of type tuple"),
        (b"\x80\x02}h\x00.", "damaged (KeyError)"),
        (b"\x80\x020.", "the opcode POP"),
        (b"\x80\x02.", "damaged (IndexError)"),
        (b"\x80\x02K\x01(\x86.", "damaged (IndexError)"),
        (b"\x80\x02e.", "damaged (IndexError)"),
        (b"\x80\x02K\x01", "cut short"),
        (b"", "cut short"),
        (b"\x80\x02I" + b"9" * 10_000 + b"\n.", "damaged (ValueError)"),
        (b"\x80\x02X\xff\xff\xff\x7fab.", "damaged (ValueError)"),
    ],
)
def test_opcodes_that_are_not_read_are_refused(data: bytes, message: str | None):
    if message is None:
        assert unpickle(data, Record) == {}
        return
    with pytest.raises(Refused) as caught:
        unpickle(data, Record)
    assert message in str(caught.value)


def test_a_registered_extension_is_not_looked_up():
    copyreg.add_extension("builtins", "eval", 240)
    try:
        data = pickle.dumps(Call(eval, CODE), protocol=2)
        assert b"\x82\xf0" in data
        with pytest.raises(Refused, match="the opcode EXT1"):
            unpickle(data, Record)
    finally:
        copyreg.remove_extension("builtins", "eval", 240)


def test_nothing_that_is_built_in_is_changed():
    """A state given to a class, which pickle would set on the class itself, is refused."""
    before = dict(vars(argparse.Namespace))
    data = b"\x80\x02cargparse\nNamespace\nN}X\x01\x00\x00\x00aK\x01s\x86b."
    with pytest.raises(Refused):
        unpickle(data, Record)
    assert dict(vars(argparse.Namespace)) == before
    assert builtins.eval is eval


def test_depth_and_sharing_cost_nothing():
    deep = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    unpickle(deep, Record)
    for wrap in (b"\x85", b""):  # lists in tuples, or a tuple in a tuple as a key
        unpickle(b"\x80\x02)" + b"\x85" * 200_000 + wrap + b".", Record)
    with pytest.raises(Refused, match="a key of type tuple"):
        unpickle(b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.", Record)
    shared = b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(60)) + b"."
    with pytest.raises(Refused, match="too deep or too many"):
        released({"state_dict": {}, "args": {"x": unpickle(shared, Record)}})
    loop: list[Any] = []
    loop.append(loop)
    assert unpickle(pickle.dumps(loop, protocol=2), Record)[0]
    with pytest.raises(Refused, match="too deep or too many"):
        released({"state_dict": {}, "args": {"x": loop}})


def test_plain_values_are_what_pickle_makes_of_them():
    values = {
        "a": [1, -1, 2**15, 2**40, -(2**70), 0.5, True, False, None],
        "b": ("x", (), (1,), (1, 2), (1, 2, 3)),
    }
    values |= {"c": (1, 2, 3, 4), "d": {"é": {}, 3: [[]]}, "e": "x" * 300}
    for protocol in (2, 3, 4):
        assert unpickle(pickle.dumps(values, protocol=protocol), Record) == values


GOOD = io.BytesIO()
torch.save({"state_dict": OrderedDict(a=torch.ones(2)), "args": argparse.Namespace(lr=0.5, x=[1, "b"])}, GOOD)
with zipfile.ZipFile(GOOD) as archive:
    DATA = archive.read("archive/data.pkl")


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_a_damaged_pickle_is_read_or_refused_and_nothing_else(data: st.DataObject):
    damaged = bytearray(DATA)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged
    before = set(sys.modules)
    with contextlib.suppress(Refused):
        released(unpickle(bytes(damaged), lambda *parts: torch.ones(1)))
    assert set(sys.modules) == before


@pytest.mark.parametrize("end", range(0, len(DATA), 3))
def test_a_pickle_that_is_cut_short_is_refused(end: int):
    with pytest.raises(Refused):
        unpickle(DATA[:end], lambda *parts: torch.ones(1))
