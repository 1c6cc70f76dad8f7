"""What a checkpoint is: a folder of safetensors beside one JSON file, made aside and renamed when whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mdmkit.errors import MdmkitError, WrongInput

from .ema import EMA
from .optim import load_named_state

__all__ = [
    "Checkpoint",
    "check_names",
    "checkpoints",
    "copy_into",
    "damaged",
    "ends_stage",
    "grow",
    "latest",
    "load",
    "load_parts",
    "next_stage",
    "parts_state",
    "read_facts",
    "restore",
    "save",
    "stage_ends",
    "write_whole",
]

FACTS = "state.json"


@attrs.frozen
class Checkpoint:
    """A loaded checkpoint: `tensors["model" | "ema" | "optimizer"]` by parameter name; `facts`.

    `tensors["parts"]`, where there is any: what parts of the training remember, as `parts_state` gives it.
    """

    path: Path
    facts: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]

    @property
    def step(self) -> int:
        """Optimiser steps taken before it was saved."""
        return self.facts["step"]


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    facts: Mapping[str, Any],
    texts: Mapping[str, str] | None = None,
    *,
    keep: int,
) -> Path:
    """Write `folder/step-0005000`, visible only when whole and on disk; then remove all but the last `keep`.

    `texts` are small files beside the tensors, by name. A checkpoint whose facts say that it `ends_stage` is
    a model of its own, and stays.

    Raises:
        MdmkitError: the disk is full or cannot be written; the checkpoints before are untouched.
    """
    final = folder / f"step-{step:07d}"
    aside = folder / f".writing-step-{step:07d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(".writing-*"):
            shutil.rmtree(old)
        write_whole(final, aside, tensors, {**facts, "step": step}, texts)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        before = latest(folder)
        kept = (
            f"the checkpoint before it is whole: {before}" if before else "there is no checkpoint before it"
        )
        raise MdmkitError(
            f"checkpoint at step {step} could not be written to {folder}: {error}; {kept}"
        ) from error
    for old in [path for path in checkpoints(folder) if not ends_stage(path)][:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def write_whole(
    final: Path,
    aside: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    facts: Mapping[str, Any],
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a folder of tensors (a safetensors file a group) and small texts, visible only when whole.

    It is made as `aside`, on the same disk, and renamed to `final`; what goes wrong leaves neither. What
    stood at `final` is replaced.
    """
    try:
        aside.mkdir()
        for name, group in tensors.items():
            flat = {key: value.detach().cpu().contiguous() for key, value in group.items()}
            save_file(flat, aside / f"{name}.safetensors")
        for name, text in (texts or {}).items():
            (aside / name).write_text(text, encoding="utf-8")
        sizes = {path.name: path.stat().st_size for path in sorted(aside.iterdir())}
        (aside / FACTS).write_text(json.dumps({**facts, "files": sizes}, indent=1), encoding="utf-8")
        for path in aside.iterdir():
            sync(path)
        sync(aside)
        if final.exists():  # a damaged one, or the run would have gone on from it
            shutil.rmtree(final)
        os.rename(aside, final)
        sync(final.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Force a file, or a folder's entries, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(folder: Path) -> list[Path]:
    """The visible checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def ends_stage(path: Path) -> bool:
    """Whether a checkpoint is the last of a stage of growth."""
    return damage(path) is None and read_facts(path).get("ends_stage", False)


def stage_ends(folder: Path) -> dict[int, Path]:
    """The checkpoints in a folder that are the last of a stage of growth, by the stage."""
    return {read_facts(path)["stage"]: path for path in checkpoints(folder) if ends_stage(path)}


def read_facts(path: Path) -> dict[str, Any]:
    """What a whole checkpoint says of itself, without its tensors."""
    return json.loads((path / FACTS).read_text(encoding="utf-8"))


def damage(path: Path) -> str | None:
    """Why a checkpoint folder is not whole, or None."""
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        wrong = [
            name
            for name, size in facts["files"].items()
            if not (path / name).is_file() or (path / name).stat().st_size != size
        ]
    except (OSError, ValueError, KeyError) as error:
        return f"{FACTS} cannot be read ({error})"
    return f"{', '.join(wrong)} missing or cut short" if wrong else None


def damaged(folder: Path) -> list[tuple[Path, str]]:
    """The checkpoints that are not whole, and why."""
    return [(path, why) for path in checkpoints(folder) if (why := damage(path)) is not None]


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    return next((path for path in reversed(checkpoints(folder)) if damage(path) is None), None)


def load(path: Path, *, only: tuple[str, ...] | None = None) -> Checkpoint:
    """Read a checkpoint folder (`only` some groups of its tensors).

    Raises:
        MdmkitError: it is not whole.
    """
    reason = damage(path)
    if reason is not None:
        raise MdmkitError(f"{path} is not a whole checkpoint: {reason}; use another one, or start again")
    facts = read_facts(path)
    groups = [name.removesuffix(".safetensors") for name in facts["files"] if name.endswith(".safetensors")]
    try:
        tensors = {
            name: load_file(path / f"{name}.safetensors") for name in groups if only is None or name in only
        }
    except (OSError, SafetensorError) as error:
        raise MdmkitError(
            f"{path} is not a whole checkpoint: {error}; use another one, or start again"
        ) from error
    return Checkpoint(path=path, facts=facts, tensors=tensors)


def next_stage(ended: Checkpoint) -> Checkpoint:
    """The checkpoint that ends a stage, as the next one finds it before it has grown."""
    facts = {
        **ended.facts,
        "stage": ended.facts["stage"] + 1,
        "ends_stage": False,
        "first": ended.step,
        "pictures_before": ended.facts["pictures"],
    }
    return attrs.evolve(ended, facts=facts)


def grow(
    checkpoint: Checkpoint,
    shapes: Mapping[str, torch.Size],
    carry: Callable[..., dict[str, Tensor]],
    *,
    apart: bool = False,
) -> Checkpoint:
    """What a stage begins with (`next_stage`), carried into its larger network: the whole state.

    shapes: of the larger network's trained parameters, by name. carry: as of `mdmkit.growth.Growth`. What is
    not carried has no state yet: it starts at its fresh values, its averages there, with counts of its own.
    apart: the stage is a model of its own, and takes over nothing that was learned beside the network either.

    Raises:
        WrongInput: the strategy cannot carry something, as what an unknown optimiser keeps.
    """
    try:
        tensors = {name: carry(checkpoint.tensors[name], shapes) for name in ("model", "ema")}
        moments = {} if apart else checkpoint.tensors["optimizer"]
        tensors["optimizer"] = grow_optimizer(moments, shapes, carry)
    except ValueError as error:
        raise WrongInput(f"{checkpoint.path} cannot grow: {error}") from error
    seen = checkpoint.tensors.get("parts", {})
    anew = (*OF_A_STAGE, *OF_A_MODEL) if apart else OF_A_STAGE
    if kept := {name: value for name, value in seen.items() if name.partition(".")[0] not in anew}:
        tensors["parts"] = kept
    levels = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("levels."))
    facts = {
        **checkpoint.facts,
        "sums": [0.0] * (levels + 1),
        "taken": [0] * (levels + 1),
        "ema": {name: checkpoint.facts["ema"].get(name, 0) for name in tensors["ema"]},
    }
    return attrs.evolve(checkpoint, facts=facts, tensors=tensors)


# what is watched anew in each stage
OF_A_STAGE = ("plateau", "resolution_sampler")
# what is learned from the losses of a model
OF_A_MODEL = ("time_sampler", "weighting")
MOMENTS = {"exp_avg": 1, "exp_avg_sq": 2}


def grow_optimizer(
    state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], carry: Callable[..., dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Moments by their order, step counts as they are."""
    by_key: dict[str, dict[str, Tensor]] = {}
    for flat, value in state.items():
        key, _, name = flat.partition("/")
        by_key.setdefault(key, {})[name] = value
    grown: dict[str, Tensor] = {}
    for key, values in by_key.items():
        if all(value.ndim == 0 for value in values.values()):
            carried = dict(values)
        elif key in MOMENTS:
            carried = carry(values, shapes, moment=MOMENTS[key])
        elif all(values[name].shape == shapes.get(name) for name in values):
            carried = dict(values)
        else:
            raise ValueError(
                f"parameters change their shape, and the optimiser keeps {key!r} of them, which only "
                f"{' and '.join(MOMENTS)} are known for; take train.optimizer = 'adamw'"
            )
        grown |= {f"{key}/{name}": value for name, value in carried.items()}
    return grown


def restore(
    checkpoint: Checkpoint,
    parameters: Mapping[str, nn.Parameter],
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    optimized: Mapping[str, nn.Parameter] | None = None,
    *,
    new: frozenset[str] = frozenset(),
) -> None:
    """Load a checkpoint into a training, every name accounted for; those in `new` may be missing.

    `optimized`: all that the optimiser trains, where that is more than the model's parameters.

    Raises:
        WrongInput: names or shapes differ, as when it was written by another recipe.
    """
    stored = checkpoint.tensors["model"]
    expected = {name: p for name, p in parameters.items() if name in stored or name not in new}
    check_names(checkpoint.path, expected, stored)
    copy_into(expected, stored)
    averages = {"averages": checkpoint.tensors["ema"], "updates": checkpoint.facts["ema"]}
    try:
        ema.load_state_dict(averages, new=parameters.keys() - expected.keys())
        load_named_state(optimizer, (optimized or parameters).items(), checkpoint.tensors["optimizer"])
    except ValueError as error:
        raise WrongInput(f"{checkpoint.path} does not fit this run: {error}") from error


def parts_state(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """What parts of a training remember, flat: `time_sampler.squares` -> tensor.

    A part remembers where it has `state_dict()`, flat names to tensors, and `load_state_dict(state)`, which
    raises ValueError for what is not its own; others are passed over.
    """
    return {
        f"{name}.{key}": value
        for name, part in parts.items()
        if hasattr(part, "state_dict")
        for key, value in part.state_dict().items()
    }


def load_parts(checkpoint: Checkpoint, parts: Mapping[str, Any], *, begins: bool = False) -> None:
    """Give each part what `parts_state` had of it.

    begins: at the first step of a stage of growth; what is not stored, or of another shape, is new there.

    Raises:
        WrongInput: something is stored of a part that remembers nothing, nothing of one that does, or it is
            not its own.
    """
    stored = checkpoint.tensors.get("parts", {})
    kept = {name: part for name, part in parts.items() if hasattr(part, "state_dict")}
    given: dict[str, dict[str, Tensor]] = {name: {} for name, part in kept.items() if part.state_dict()}
    if begins:
        given = {name: dict(kept[name].state_dict()) for name in given}
    for key, value in stored.items():
        name, _, inside = key.partition(".")
        own = given.setdefault(name, {}).get(inside)
        if not begins or (own is not None and own.shape == value.shape):
            given[name][inside] = value
    for name, state in given.items():
        if name not in kept or not state:
            what = "remembers nothing" if state else "remembers something"
            has = "has" if state else "has nothing"
            raise WrongInput(
                f"{checkpoint.path} {has} of the {name}, but this run's {what}: it is another component; "
                "resume with the one that the run was begun with"
            )
        try:
            kept[name].load_state_dict(state)
        except (ValueError, RuntimeError) as error:  # a module's own is a RuntimeError of many lines
            said = " ".join(str(error).split())
            raise WrongInput(f"{checkpoint.path} does not fit this run's {name}: {said}") from error


@torch.no_grad()
def copy_into(parameters: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Give each parameter its stored value."""
    for name, parameter in parameters.items():
        parameter.copy_(stored[name])


def check_names(path: Path, wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raise WrongInput unless the stored tensors are exactly the wanted ones, by name and shape."""
    missing, left_over = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    shapes = [
        f"{name} {tuple(stored[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in stored and stored[name].shape != value.shape
    ]
    said = [
        f"{what}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for what, names in (("missing", missing), ("left over", left_over), ("other shape", shapes))
        if names
    ]
    if said:
        raise WrongInput(f"{path} is from another recipe: {'; '.join(said)}")
