"""Distributions that are installed only for one test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Install = Callable[..., Path]

PLUGIN = '''
import attrs
from mdmkit.plugins import Component, hookimpl
from mdmkit.recipe import opt

@attrs.frozen
class Laplace:
    """Laplace density over logsnr."""
    scale: float = opt(0.5, "width of the density", gt=0.0)

@hookimpl
def mdmkit_components():
    return [Component("noise_schedule", "{prefix}.laplace", Laplace)]
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plugins: None) -> Iterator[Install]:
    """install("acme-mdm", "1.2", "acme", code): a distribution, an entry point, a module of this code."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def make(distribution: str, version: str, name: str, code: str | None = None) -> Path:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(PLUGIN.replace("{prefix}", name) if code is None else code)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[mdmkit]\n{name} = {module}\n")
        return tmp_path / f"{module}.py"

    yield make
    for module in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]
