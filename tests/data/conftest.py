"""Small pictures and shards, made where a test asks for them."""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # for noise_dataset, also in worker processes


def encoded(seed: int, *, size: tuple[int, int] = (20, 30), format: str = "png") -> bytes:
    """A picture of noise, (height, width), encoded."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


@pytest.fixture(name="encoded")
def _encoded() -> Callable[..., bytes]:
    return encoded


@pytest.fixture
def write_tar() -> Callable[[Path, Sequence[tuple[str, bytes]]], Path]:
    """Writes (name, bytes) members with the standard library, not with the writer under test."""

    def write(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def shards(tmp_path: Path, write_tar) -> str:
    """A pattern of three shards of 5, 0 and 7 samples, captions "0" to "11"."""
    numbers = iter(range(12))
    for shard, count in enumerate((5, 0, 7)):
        members = []
        for number in (next(numbers) for _ in range(count)):
            members += [(f"{number:03d}.png", encoded(number)), (f"{number:03d}.txt", str(number).encode())]
        write_tar(tmp_path / "tars" / f"s-{shard}.tar", members)
    return str(tmp_path / "tars" / "s-{0..2}.tar")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MDMKIT_ALLOW_PIPE", raising=False)
