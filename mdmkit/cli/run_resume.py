"""What a run starts from: a model folder; or, where it goes on, its own recipe and newest checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdmkit.errors import WrongInput

if TYPE_CHECKING:
    from mdmkit.plugins import Registry
    from mdmkit.recipe.schema import Recipe
    from mdmkit.start import Start
    from mdmkit.train.state import Checkpoint

__all__ = ["checkpoint_of", "resumed_recipe", "run_facts", "start_of", "unlike"]


def run_facts(folder: Path) -> dict[str, Any]:
    """What run.toml says, or a clear refusal where there is no run."""
    import tomli

    from mdmkit.train.folder import RESOLVED, RUN

    if not (folder / RESOLVED).is_file():
        raise WrongInput(
            f"{folder} holds no run ({RESOLVED} is missing); start one with: mdmkit run RECIPE --out {folder}"
        )
    return tomli.loads((folder / RUN).read_text(encoding="utf-8")) if (folder / RUN).is_file() else {}


def resumed_recipe(
    folder: Path, sets: Sequence[str], registry: Registry, *, allow_pipe: bool, fixed_model: bool = True
) -> Recipe:
    """The run's own resolved recipe with overrides; what they change in `model` would not fit its weights.

    Without `fixed_model` levels may change that the run does not have yet: see `checkpoint_of`.
    """
    from mdmkit.recipe import load
    from mdmkit.train.folder import RESOLVED

    before = load(folder / RESOLVED, [], registry, allow_pipe=allow_pipe)
    now = load(folder / RESOLVED, sets, registry, allow_pipe=allow_pipe)
    names = ("model", "text", "data") if fixed_model else ("text", "data")
    fixed = [name for name in names if getattr(before, name) != getattr(now, name)]
    if before.run.start != now.run.start:
        raise WrongInput(
            f"--set changes run.start, which is read before the first step of {folder} only; "
            "start a new run with another --out instead"
        )
    if "data" in fixed and before.data.source == now.data.source:
        fixed.remove("data")  # workers and the like change no number
    if fixed:
        raise WrongInput(
            f"--set changes [{fixed[0]}], which the checkpoints in {folder} were made with; "
            "start a new run with another --out instead"
        )
    return now


def start_of(recipe: Recipe, folder: Path, registry: Registry, *, resumed: bool) -> Start | None:
    """What the run starts from, None where it starts afresh or goes on from a checkpoint of its own.

    Raises:
        WrongInput: it is not there, does not fit, or is another than when the run was begun.
    """
    from mdmkit import start
    from mdmkit.train.state import latest

    if recipe.run.start is None:
        return None
    if not resumed:
        return start.find(recipe, registry)
    if latest(folder / "checkpoints") is not None:
        return None
    # stopped before its first checkpoint: it begins again, from the same weights
    said = run_facts(folder).get("start", {})
    found = start.find(recipe, registry, said.get("folder"))
    if said and said["weights"] != {f"{found.weights}.safetensors": f"sha256:{found.digest()}"}:
        raise WrongInput(
            f"run.start: the weights in {found.folder} are not those that {folder} began with, and it has no "
            "checkpoint yet; start a new run with another --out"
        )
    return found


def checkpoint_of(folder: Path, recipe: Recipe, registry: Registry, *, talk: bool) -> Checkpoint | None:
    """The newest whole checkpoint of a run that goes on, None where there is none yet.

    Raises:
        WrongInput: another recipe wrote it.
    """
    from mdmkit.recipe.stages import growth_of
    from mdmkit.train.folder import RESOLVED
    from mdmkit.train.state import damaged, latest, read_facts
    from mdmkit.train.state import load as load_checkpoint

    for path, why in damaged(folder / "checkpoints") if talk else ():
        print(f"{path} is passed over: {why}", file=sys.stderr)
    found = latest(folder / "checkpoints")
    if found is None:
        return None
    index, stages = read_facts(found).get("stage", 0), growth_of(recipe, registry).stages
    if index >= len(stages):
        raise WrongInput(
            f"{found} is of stage {index}, but growth.stages of {folder / RESOLVED} has {len(stages)}; "
            "put the stage back"
        )
    if (table := unlike(found, recipe, registry)) is not None:
        of = f", as stage {index} has it" if len(stages) > 1 else ""
        raise WrongInput(
            f"{found} was written by another recipe: its [{table}] is not that of {folder / RESOLVED}{of}; "
            "move it away to go on from the checkpoint before it"
        )
    return load_checkpoint(found)


def unlike(found: Path, recipe: Recipe, registry: Registry) -> str | None:
    """The table of a recipe, as its stage has it, that is not the one a checkpoint was written by, if any."""
    from mdmkit.recipe import load
    from mdmkit.recipe.stages import stage_recipe
    from mdmkit.train.folder import RESOLVED
    from mdmkit.train.state import read_facts

    if not (found / RESOLVED).is_file():
        return None
    wrote = load(found / RESOLVED, [], registry, allow_pipe=True)
    mine = stage_recipe(recipe, registry, read_facts(found).get("stage", 0))
    return next((name for name in ("model", "text") if getattr(wrote, name) != getattr(mine, name)), None)
