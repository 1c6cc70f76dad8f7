"""Recorded reference numbers: where they lie, how they are read, how near is near enough.

They lie in MDMKIT_GOLDEN, or in ../shared/golden beside the project. Tests that need them are skipped where
they are not there, and fail with MDMKIT_REQUIRE_GOLDEN=1, which `.ci/run` sets.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mdmkit.interop.apple_keys import build_nest, from_released
from mdmkit.nn import NestedUNet

__all__ = ["golden_case", "network", "off", "read", "tolerance"]


def golden_case(name: str) -> Path:
    """The folder of a case; the test is skipped, or fails, where the numbers are not there."""
    root = Path(os.environ.get("MDMKIT_GOLDEN") or Path(__file__).parents[1] / ".." / "shared" / "golden")
    if not (root / name).is_dir():
        why = f"no reference numbers at {root / name} (set MDMKIT_GOLDEN)"
        if os.environ.get("MDMKIT_REQUIRE_GOLDEN"):
            pytest.fail(why)
        pytest.skip(why)
    return root / name


def read(folder: Path, name: str) -> Any:
    """A JSON file of a case."""
    return json.loads((folder / name).read_text())


def network(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> NestedUNet:
    """The network of a case, from its released settings and weights; `changes` of the settings."""
    config = read(folder, "config.json")
    nest = build_nest(config["unet_config"] | changes, config["lm_embed_dim"], dtype=dtype)
    state = {key: value.to(dtype) for key, value in load_file(folder / "weights.safetensors").items()}
    nest.load_state_dict(from_released(state, nest))
    return nest


def off(ours: Tensor, recorded: Tensor) -> float:
    """max |ours - recorded| / std(recorded)."""
    return ((ours - recorded).abs().max() / recorded.std()).item()


def tolerance(floor: float) -> float:
    """How far off float32 may be, where the recording was `floor` away from float64."""
    return max(5e-5, 4 * floor)
