"""Recorded reference numbers: where they lie, how they are read, how near is near enough.

They lie in MDMKIT_GOLDEN, or in ../shared/golden beside the project. Tests that need them are skipped where
they are not there, and fail with MDMKIT_REQUIRE_GOLDEN=1, which `.ci/run` sets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mdmkit.diffusion import Diffusion, signal_scales
from mdmkit.interop.apple_keys import build_nest, from_released
from mdmkit.nn import NestedUNet
from mdmkit.schedules import DDPM, Cosine, CosineLogSNR, shift_levels

__all__ = ["SPACE", "golden_case", "network", "off", "process", "read", "released_sizes", "tolerance"]

SPACE = {"DDPM": "eps", "DDIM": "eps", "V_PREDICTION": "v"}
SCHEDULES = {"DDPM": DDPM(), "DEEPFLOYD": Cosine(), "COSINE": CosineLogSNR()}


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


def network(folder: Path, dtype: torch.dtype = torch.float32) -> NestedUNet:
    """The network of a case, from its released settings and weights."""
    config = read(folder, "config.json")
    nest = build_nest(config["unet_config"], config["lm_embed_dim"], dtype=dtype)
    state = {key: value.to(dtype) for key, value in load_file(folder / "weights.safetensors").items()}
    nest.load_state_dict(from_released(state, nest))
    return nest


def off(ours: Tensor, recorded: Tensor) -> float:
    """max |ours - recorded| / std(recorded)."""
    return ((ours - recorded).abs().max() / recorded.std()).item()


def tolerance(floor: float) -> float:
    """How far off float32 may be, where the recording was `floor` away from float64."""
    return max(5e-5, 4 * floor)


def process(settings: Mapping[str, Any], sizes: Sequence[tuple[int, int]]) -> Diffusion:
    """The diffusion process that a released `sampler_config` describes; sizes low to high."""
    shifted, nested = settings["schedule_shifted"], len(sizes) > 1
    # without a shift, the pictures of a nest are divided by their ratio to the innermost; a single network's
    # by rescale_signal, which a nest does not read
    scale = 1.0 if nested else 1 / (settings["rescale_signal"] or 1)
    return Diffusion(
        shift_levels(
            SCHEDULES[settings["schedule_type"]],
            sizes,
            shift_power=settings["schedule_shifted_power"] if shifted else 0,
        ),
        prediction=SPACE[settings["prediction_type"]],
        scales=signal_scales(sizes, scale=scale, power=0 if shifted else 1),
    )


def released_sizes(recorded: Mapping[str, Tensor], prefix: str) -> list[tuple[int, int]]:
    """Height and width of each level, low to high, of recorded pictures `prefix.0` (high), `prefix.1` ..."""
    count = sum(key.rpartition(".")[0] == prefix for key in recorded)
    shapes = [recorded[f"{prefix}.{i}"].shape for i in reversed(range(count))]
    return [(shape[-2], shape[-1]) for shape in shapes]
