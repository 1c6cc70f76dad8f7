"""Makes the feature extractor of the claims, as `mdmkit extractor` does, with the claims' settings.

    python benches/claims/features.py [--recipe RECIPE] [--out FILE] [--steps N] [--seed N]

It learns from the recipe's own data and captions, by a stored seed; its accuracy on pictures kept apart is
printed and stored in the file. The metric `fidelity` takes the file as `weights`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdmkit.cli import extractor
from mdmkit.plugins import load_registry
from mdmkit.recipe import load

__all__ = ["make"]

HERE = Path(__file__).parent


def make(recipe: Path, out: Path, *, sets: Sequence[str] = (), **settings: Any) -> dict[str, float]:
    """Learn and write it; how well it reads."""
    registry = load_registry()
    return extractor.make(load(recipe, sets, registry), registry, out, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=HERE / "nest2.toml")
    parser.add_argument("--out", type=Path, default=Path("runs/claims/words.safetensors"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    told = make(options.recipe, options.out, steps=options.steps, seed=options.seed)
    print(json.dumps({"file": str(options.out), **told}))


if __name__ == "__main__":
    main()
