"""Released checkpoints as files: the tensors that torch would load, mapped; damage and tricks refused."""

from __future__ import annotations

import argparse
import enum
import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

from mdmkit.errors import WrongInput
from mdmkit.interop.apple_file import read
from mdmkit.interop.apple_keys import build_nest, from_released
from tests.golden import golden_case


def save(path: Path, state: dict[str, Tensor], **said: Any) -> Path:
    torch.save({"state_dict": OrderedDict(state), **said}, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(WrongInput) as caught:
        read(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said.removeprefix(f"{path}: ")


FILES = ["noema_args_dict", "ema_args_namespace_plain", "ema_args_namespace_objects"]
FILES += ["ema_args_namespace_objects_oldnames"]


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_the_recorded_files_give_the_recorded_outputs(name: str):
    folder = golden_case("checkpoint_unet")
    modules = set(sys.modules)
    found = read(folder / f"{name}.pth")
    assert not {module for module in set(sys.modules) - modules if module.startswith(("ml_mdm", "samplers"))}
    config, meta = (json.loads((folder / file).read_text()) for file in ("config.json", "meta.json"))
    assert found.settings is not None
    assert sorted(found.settings) == meta["args_keys"]
    for key in ("unet_config", "diffusion_config"):
        assert found.settings[key] == config[key]
    assert found.numbers == meta["other_items"]
    nest = build_nest(found.settings["unet_config"], config["lm_embed_dim"])
    nest.load_state_dict(from_released(found.tensors, nest))
    io = load_file(folder / "io.safetensors")
    with torch.no_grad():
        (out,) = nest(
            [io["x_t.0"]],
            (io["times"].double() + 1) / 1000,
            io["conditioning"],
            io["cond_mask"].bool(),
            {key.removeprefix("micros."): value for key, value in io.items() if key.startswith("micros.")},
        )
    recorded = io[f"out_{name.partition('_')[0]}.0"]
    assert ((out - recorded).abs().max() / recorded.std()).item() <= 5e-5


@pytest.mark.golden
def test_the_recorded_tensors_are_those_that_torch_loads():
    path = golden_case("checkpoint_unet") / "noema_args_dict.pth"
    theirs = torch.load(path, weights_only=True)["state_dict"]
    ours = read(path).tensors
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@settings(deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64]),
    seed=st.integers(0, 99),
)
def test_tensors_are_those_that_torch_loads(
    shape: list[int], dtype: torch.dtype, seed: int, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.mktemp("drawn") / "a.pth"
    base = torch.randn(5, 6, 7, 8, generator=torch.Generator().manual_seed(seed)).mul(9).to(dtype)
    state = {
        "drawn": base[tuple(slice(n) for n in shape)].clone(),
        "turned": base.permute(3, 1, 0, 2),
        "part": base[1:3, ::2],
        "same": base,
        "one": base[0, 0, 0, 0],
    }
    torch.save({"state_dict": state}, path)
    ours, theirs = read(path).tensors, torch.load(path, weights_only=True)["state_dict"]
    for name, value in theirs.items():
        assert ours[name].dtype == dtype
        assert torch.equal(ours[name], value)
        assert not value.numel() or ours[name].stride() == value.stride()


def test_tensors_are_the_mapped_file(tmp_path: Path):
    path = save(tmp_path / "a.pth", {"a": torch.ones(1000), "b": torch.zeros(7, 7)})
    found = read(path)
    mapped = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("a.pth")
    ]
    for tensor in found.tensors.values():
        assert any(start <= tensor.data_ptr() < end for start, end in mapped)
    found.tensors["a"].zero_()  # a private mapping: the file is not written
    assert torch.equal(read(path).tensors["a"], torch.ones(1000))


def released_modules(prefix: str) -> dict[str, types.ModuleType]:
    """Stand-ins for the released package, by whose names a checkpoint is pickled."""

    class ScheduleType(enum.Enum):
        DEEPFLOYD = 3

    class ThresholdType(enum.Enum):
        DYNAMIC_IF = 3
        OTHER = 9

    @dataclass
    class SamplerConfig:
        schedule_type: ScheduleType = ScheduleType.DEEPFLOYD
        threshold_function: ThresholdType = ThresholdType.DYNAMIC_IF
        beta_start: float = 0.5

    @dataclass
    class Nested2UNetConfig:
        resolution_channels: list[int] = field(default_factory=lambda: [32, 64])

    found = {}
    for short, classes in (
        ("samplers", (ScheduleType, ThresholdType, SamplerConfig)),
        ("models.nested_unet", (Nested2UNetConfig,)),
    ):
        parts = f"{prefix}{short}".split(".")
        for name in (".".join(parts[: n + 1]) for n in range(len(parts))):
            found.setdefault(name, types.ModuleType(name))
        for made in classes:
            made.__module__, made.__qualname__ = f"{prefix}{short}", made.__name__
            setattr(found[made.__module__], made.__name__, made)
    return found


@pytest.mark.parametrize("prefix", ["", "ml_mdm."])
def test_objects_become_tables_of_their_fields(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    modules = released_modules(prefix)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    samplers = modules[f"{prefix}samplers"]
    nested = modules[f"{prefix}models.nested_unet"].Nested2UNetConfig
    args = argparse.Namespace(unet_config=nested(), sampler_config=samplers.SamplerConfig(), lr=0.5)
    path = save(tmp_path / "a.pth", {"a": torch.ones(2)}, args=args, loss=numpy.float64(0.5), batch_num=3)
    wrong = save(tmp_path / "b.pth", {}, args={"threshold_function": samplers.ThresholdType.OTHER})
    for name in modules:
        monkeypatch.delitem(sys.modules, name)
    found = read(path)
    assert found.settings == {
        "unet_config": {"resolution_channels": [32, 64]},
        "sampler_config": {
            "schedule_type": "DEEPFLOYD",
            "threshold_function": "DYNAMIC_IF",
            "beta_start": 0.5,
        },
        "lr": 0.5,
    }
    assert found.numbers == {"batch_num": 3}  # numpy's number is no plain one
    said = f"{prefix}samplers.ThresholdType has no member (9,) that is known here"
    assert refusal(wrong) == said


# damage and tricks


def rewritten(path: Path, change: Callable[[dict[str, bytes]], object], **options: Any) -> Path:
    """The file with its records changed, each aligned as torch aligns it."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    change(records)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in records.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = options.get("compression", zipfile.ZIP_STORED)
            here = archive.fp.tell() + 30 + len(name)  # pyright: ignore[reportOptionalMemberAccess]
            fill = -(here + 4) % 64
            info.extra = struct.pack("<HH", 0x4246, fill) + b"Z" * fill
            archive.writestr(info, data)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return save(tmp_path / "good.pth", {"a": torch.arange(6.0).reshape(2, 3)}, args={"lr": 1.0})


def test_a_rewritten_file_is_read(good: Path):
    assert torch.equal(read(rewritten(good, lambda records: None)).tensors["a"], torch.arange(6.0).view(2, 3))


@settings(deadline=None, max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_short_is_refused(share: float, tmp_path_factory: pytest.TempPathFactory):
    path = save(tmp_path_factory.mktemp("cut") / "a.pth", {"a": torch.ones(300)})
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert refusal(path) in (
        "the file is cut short or damaged",
        "expected a torch checkpoint (a zip), and it is none",
    )


def test_no_checkpoint_is_said(tmp_path: Path):
    path = tmp_path / "a.pth"
    assert refusal(path) == "cannot be read: No such file or directory"
    assert refusal(tmp_path) == "cannot be read: Is a directory"
    path.write_bytes(b"")
    assert refusal(path) == "expected a torch checkpoint (a zip), and it is none"
    torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)
    assert refusal(path) == "it is in torch's format of before 1.6; load and save it with torch first"
    torch.save([1, 2], path)
    assert refusal(path) == "expected a released checkpoint, a dict with 'state_dict', which this has not"
    torch.save({"state_dict": {"a": 1}}, path)
    assert refusal(path) == "expected tensors by name in 'state_dict', got int for 'a'"
    torch.save({"state_dict": {}, "args": [1]}, path)
    assert refusal(path) == "expected a table of settings in 'args', got list"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b", "c")
    assert refusal(path) == "expected a torch checkpoint, a zip with one data.pkl and each name once"


def test_records_are_checked(good: Path):
    name = "good/data/0"
    kept = good.read_bytes()

    def after(change: Callable[[dict[str, bytes]], object], **options: Any) -> str:
        good.write_bytes(kept)
        return refusal(rewritten(good, change, **options))

    def put(**records: bytes) -> Callable[[dict[str, bytes]], object]:
        return lambda found: found.update(
            {f"good/{key.replace('_', '/')}": value for key, value in records.items()}
        )

    assert after(put(data_0=b"1234")) == (
        "the record data/0 has 4 bytes, but 6 torch.float32 numbers are declared"
    )
    assert after(lambda found: found.pop(name)) == "the record data/0 is missing"
    assert after(put(byteorder=b"big")).startswith("its numbers are not little-endian")
    assert after(lambda found: found.update({"x/data.pkl": b""})).startswith(
        "expected a torch checkpoint, a zip"
    )
    assert after(lambda found: None, compression=zipfile.ZIP_DEFLATED).startswith(
        "the record byteorder is comp"
    )
    assert after(lambda found: found.update({"good/data.pkl": bytes(5 << 20)})) == (
        "the record data.pkl has 5,242,880 bytes, more than the 4,194,304 that are read"
    )
    # tricks with names: what is outside of the folder of data.pkl is no record
    for outside in ("../data/0", "data/0", "/good/data/0"):
        moved = after(lambda found, name_=outside: found.update({name_: found.pop(name)}))
        assert moved == "the record data/0 is missing"
    at = kept.index(torch.arange(6.0).numpy().tobytes())
    good.write_bytes(kept[: at + 3] + b"\x01" + kept[at + 4 :])
    assert refusal(good) == "the record data/0 does not match its checksum; the file is damaged"


def with_numbers(numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A pickle of a checkpoint with one tensor, whatever its numbers."""

    class Storage:
        pass

    class Rebuilt:
        def __reduce__(self) -> tuple[Any, ...]:
            return _rebuild_tensor_v2, (Storage(), offset, size, stride, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(obj, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"state_dict": {"a": Rebuilt()}})
    return buffer.getvalue()


OUTSIDE = "a tensor over the record data/0 reaches outside of it"
IMPOSSIBLE = "a tensor over the record data/0 has an impossible shape"


@pytest.mark.parametrize(
    ("numel", "offset", "size", "stride", "message"),
    [
        (6, 0, (2, 3), (3, 1), None),
        (6, 5, (1,), (1,), None),
        (6, 5, (1,), (99,), None),
        (6, 0, (3, 2), (1, 3), None),
        (6, 6, (0,), (1,), None),
        (6, 1, (6,), (1,), OUTSIDE),
        (6, 0, (2, 3), (4, 1), OUTSIDE),
        (6, 0, (2**40, 3), (0, 1), OUTSIDE),
        (6, 0, (7,), (0,), OUTSIDE),
        (6, 0, (1,) * 9, (1,) * 9, OUTSIDE),
        (6, -1, (2,), (1,), IMPOSSIBLE),
        (6, 0, (-2,), (1,), IMPOSSIBLE),
        (6, 5, (2,), (-1,), IMPOSSIBLE),
        (6, 0, (2, 3), (1,), IMPOSSIBLE),
        (6, 0, (2**60,), (1,), IMPOSSIBLE),
        (7, 0, (7,), (1,), "the record data/0 has 24 bytes, but 7 torch.float32 numbers are declared"),
        (2**47, 0, (7,), (1,), "the record data/0 has 24 bytes, but 140,737,488,355,328 torch.float32"),
    ],
)
def test_a_tensor_stays_inside_its_record(
    numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...], message: str | None, good: Path
):
    rewritten(good, lambda found: found.update({"good/data.pkl": with_numbers(numel, offset, size, stride)}))
    if message is None:
        wanted = torch.arange(6.0).as_strided(size, stride, offset)
        assert torch.equal(read(good).tensors["a"], wanted)
    else:
        assert refusal(good).startswith(message)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    path = save(tmp_path_factory.mktemp("hurt") / "a.pth", {"a": torch.ones(3)}, args={"lr": 1.0})
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(damaged))
    try:
        found = read(path)
    except WrongInput:
        return
    assert all(torch.equal(tensor, torch.ones(3)) for tensor in found.tensors.values())
