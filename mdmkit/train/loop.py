"""The training loop, in one function."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mdmkit.data.loader import Batch, batches
from mdmkit.errors import MdmkitError
from mdmkit.pyramid import pyramid
from mdmkit.resolutions import rows_per_level
from mdmkit.streams import key_bytes

from .draws import Rows, draw_noise, dropped, micro_batches
from .ema import EMA
from .objective import Objective
from .optim import load_named_state, named_state
from .parallel import World, autocast
from .state import Checkpoint, save

__all__ = ["Interrupted", "Parts", "Plan", "train", "trained_parameters"]


class Interrupted(MdmkitError):
    """SIGINT or SIGTERM arrived; the run is saved and can be resumed."""

    exit_code = 130


@attrs.frozen
class Plan:
    """The numbers of a training; see the recipe's [train] table for each."""

    steps: int
    batch: int
    seed: int = 0
    accumulate: int = 1
    clip: float | None = 1.0
    ema: float = 0.999
    caption_dropout: float = 0.1
    level_weights: tuple[float, ...] | None = None
    precision: str = "fp32"
    max_bad_steps: int = 5
    checkpoint_every: int = 1000
    keep: int = 2
    log_every: int = 10
    workers: int = 0


@attrs.frozen
class Parts:
    """The objects of a training, as a recipe or a program put them together."""

    nest: nn.Module
    text: nn.Module | None
    objective: Objective
    dataset: Any
    optimizer: torch.optim.Optimizer
    lr_schedule: Any
    resolution_sampler: Any
    growth: Any
    time_sampler: Any
    resolutions: tuple[tuple[int, int], ...]
    empty_features: tuple[Tensor, Tensor] | None = None  # of the empty caption, where text comes as packed features


def trained_parameters(nest: nn.Module, text: nn.Module | None) -> dict[str, nn.Parameter]:
    """What is trained and saved, by its name in a checkpoint: the nest's own names, a learning text encoder's `text.*`."""
    named = dict(nest.named_parameters())
    if text is not None and getattr(text, "trainable", False):
        named |= {f"text.{name}": parameter for name, parameter in text.named_parameters()}
    return named


def train(
    parts: Parts,
    plan: Plan,
    *,
    device: torch.device,
    world: World,
    run_dir: Path,
    resume: Checkpoint | None = None,
    texts: dict[str, str] | None = None,
    on_log: Callable[[int, dict[str, Any]], None] = lambda step, metrics: None,
    on_step: Callable[[int, dict[str, Tensor]], None] = lambda step, metrics: None,
    on_event: Callable[[int, str, dict[str, Any]], None] = lambda step, event, facts: None,
    before_checkpoint: Callable[[], None] = lambda: None,
    on_checkpoint: Callable[[int, Path], None] = lambda step, path: None,
    on_sample: Callable[[int, EMA], None] | None = None,
    sample_every: int | None = None,
) -> EMA:
    """Train from step 0, or from a checkpoint, to `plan.steps`; returns the averaged weights.

    Every draw is a function of (seed, step, place in the batch): there is no generator to save, and a resumed run on
    the same CPU threads, workers and ranks repeats the bits of the run that was never stopped.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the state at that step is saved.
        MdmkitError: too many bad steps or unreadable samples in a row, a full disk, a checkpoint that does not fit.
    """
    parameters = trained_parameters(parts.nest, parts.text)
    ema = EMA(parameters, decay=plan.ema)
    for group in parts.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    step = bad_steps = bad_in_row = skipped = 0
    sums, summed = torch.zeros(len(parts.resolutions) + 1, dtype=torch.float64, device=device), 0
    if resume is not None:
        restore(resume, parameters, ema, parts.optimizer)
        step, bad_steps, bad_in_row = resume.step, resume.facts["bad_steps"], resume.facts["bad_in_row"]
        skipped = resume.facts["skipped"]
        sums, summed = torch.tensor(resume.facts["sums"], dtype=torch.float64, device=device), resume.facts["summed"]
    weights = torch.tensor(plan.level_weights or [1.0] * len(parts.resolutions), device=device)
    objective: nn.Module = parts.objective
    if world.size > 1:
        objective = DistributedDataParallel(parts.objective, find_unused_parameters=True)
    parts.nest.train()

    def rows_of(at: int) -> list[Rows]:
        stage = parts.growth.stage(at)
        shares = parts.resolution_sampler.shares(plan.seed, at)
        counts = rows_per_level(shares, plan.batch, multiple=world.size * plan.accumulate)
        return micro_batches(counts[: stage.levels], rank=world.rank, ranks=world.size, accumulate=plan.accumulate)

    def positions() -> Iterator[list[int]]:
        for at in range(step, plan.steps):
            yield [at * plan.batch + place for rows in rows_of(at) for place in rows.places]

    def checkpoint() -> Path | None:
        path = None
        if world.is_main:
            facts = {
                "bad_steps": bad_steps, "bad_in_row": bad_in_row, "skipped": skipped,
                "sums": sums.tolist(), "summed": summed, "pictures": step * plan.batch, "ema": ema.updates,
            }
            tensors = {
                "model": parameters, "ema": ema.averages, "optimizer": named_state(parts.optimizer, parameters.items()),
            }
            before_checkpoint()  # the log reaches the disk first: it never ends before a visible checkpoint
            path = save(run_dir / "checkpoints", step, tensors, facts, texts, keep=plan.keep)
            on_checkpoint(step, path)
        world.barrier()
        return path

    with stop_signals() as asked_to_stop, contextlib.closing(
        batches(parts.dataset, positions(), workers=plan.workers)
    ) as loader:
        started, timed_from = time.perf_counter(), step
        for batch in loader:
            if batch.skipped:
                skipped += len(batch.skipped)
                for key, cause in batch.skipped:
                    on_event(step + 1, "skipped_sample", {"key": key, "cause": cause})
            factor = parts.lr_schedule.factor(step)
            for group in parts.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            micros = rows_of(step)
            losses = torch.zeros(len(parts.resolutions), device=device)
            offset = 0
            for index, rows in enumerate(micros):
                part = batch.rows(offset, offset + len(rows.places))
                offset += len(rows.places)
                # dropout inside the network is the only draw left to torch's own generator
                torch.manual_seed(int.from_bytes(key_bytes((plan.seed, step, rows.places[0], "dropout"), 8), "little"))
                last = index == len(micros) - 1
                with contextlib.nullcontext() if last or world.size == 1 else objective.no_sync():  # type: ignore[operator]
                    by_level = forward(objective, parts, plan, part, rows, step, device)
                    reached = len(by_level)
                    ((by_level * weights[:reached]).sum() / len(micros)).backward()
                losses[:reached] += by_level.detach() / len(micros)
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), plan.clip or float("inf"))
            finite = torch.isfinite(losses).all() & torch.isfinite(norm)
            bad, stop = world.any(~finite, asked_to_stop(), device=device)
            if bad:
                bad_steps, bad_in_row = bad_steps + 1, bad_in_row + 1
                on_event(step + 1, "bad_step", {"loss": losses.tolist(), "grad_norm": float(norm), "in_row": bad_in_row})
                if bad_in_row >= plan.max_bad_steps:
                    raise MdmkitError(
                        f"{bad_in_row} steps in a row had a loss or gradient that is not finite (the last is step {step + 1}); "
                        "lower train.optimizer.lr or train.clip, or start from an earlier checkpoint"
                    )
            else:
                bad_in_row = 0
                parts.optimizer.step()
                ema.update()
                sums += torch.cat([losses, norm.reshape(1)]).double()
                summed += 1
            parts.optimizer.zero_grad(set_to_none=True)
            step += 1
            on_step(step, {"loss": losses, "grad_norm": norm})
            if step % plan.log_every == 0 or step == plan.steps:
                means = world.mean(sums / max(summed, 1)).tolist()
                seconds = (time.perf_counter() - started) / (step - timed_from)
                total = sum(w * mean for w, mean in zip(weights.tolist(), means, strict=False))
                on_log(step, {
                    "loss": total, **{f"loss.{r}": mean for r, mean in enumerate(means[:-1])}, "grad_norm": means[-1],
                    "lr": parts.optimizer.param_groups[0]["lr"], "bad_steps": bad_steps,
                    "skipped": world.sum(skipped, device), "pictures": step * plan.batch,
                    "seconds": seconds, "pictures_per_second": plan.batch / seconds,
                })
                sums.zero_()
                summed, started, timed_from = 0, time.perf_counter(), step
            done = step == plan.steps
            if done or stop or step % plan.checkpoint_every == 0:
                checkpoint()
            if stop and not done:
                on_event(step, "interrupted", {})
                raise Interrupted(f"interrupted at step {step}, and saved; go on with --resume {run_dir}")
            if on_sample is not None and sample_every and step % sample_every == 0 and not done:
                on_sample(step, ema)
                parts.nest.train()
                started, timed_from = time.perf_counter(), step
    return ema


def forward(
    objective: nn.Module, parts: Parts, plan: Plan, batch: Batch, rows: Rows, step: int, device: torch.device
) -> Tensor:
    """The losses by level of one micro-batch, with all its draws."""
    pictures = batch.images.to(device, non_blocking=True).float() / 127.5 - 1
    x = pyramid(pictures, parts.resolutions[: len(rows.per_level)], rows.per_level)
    eps = draw_noise(rows, parts.resolutions, seed=plan.seed, step=step, device=device)
    t = parts.time_sampler.draw(plan.seed, step, list(rows.places), plan.batch).to(device)
    text: dict[str, Any] = {}
    if parts.text is not None:
        drop = dropped(rows, plan.caption_dropout, seed=plan.seed, step=step)
        captions = ["" if gone else caption for gone, caption in zip(drop, batch.captions, strict=True)]
        if batch.features is not None:
            text["cond"], text["cond_mask"] = packed_features(batch, drop, parts.empty_features, device)
        elif getattr(parts.text, "trainable", False):
            text["captions"] = captions
        else:
            text["cond"], text["cond_mask"] = parts.text(captions)
    with autocast(plan.precision, device):
        return objective(x, eps, t, micros=micro_conditions(parts.nest, batch, device), **text)


def packed_features(
    batch: Batch, drop: list[bool], empty: tuple[Tensor, Tensor] | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Features (B, L, D) and mask (B, L) that came with the data; dropped rows get those of the empty caption."""
    assert batch.features is not None and batch.features_mask is not None
    cond, mask = batch.features.to(device, copy=True).float(), batch.features_mask.to(device, copy=True)
    gone = torch.tensor(drop, device=device)
    if any(drop):
        if empty is None:
            raise MdmkitError(
                "the shards hold text features but not those of the empty caption, which train.caption_dropout needs; "
                "pack them again with mdmkit pack --features, or set train.caption_dropout = 0.0"
            )
        length = max(cond.shape[1], empty[0].shape[0])
        cond, mask = (nn.functional.pad(cond, (0, 0, 0, length - cond.shape[1])),
                      nn.functional.pad(mask, (0, length - mask.shape[1])))
        nothing, nothing_mask = (nn.functional.pad(empty[0].to(cond), (0, 0, 0, length - len(empty[0]))),
                                 nn.functional.pad(empty[1].to(mask), (0, length - len(empty[1]))))
        cond[gone], mask[gone] = nothing, nothing_mask
    return cond, mask


def micro_conditions(nest: nn.Module, batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """What the levels want to know of a picture: `scale` (smaller side), `height`, `width` of the original, pixels.

    Raises:
        MdmkitError: a level wants something else.
    """
    wanted = {key for level in nest.levels for key in level.embedding.defaults}  # type: ignore[union-attr]
    known = {"scale": batch.sizes.min(1).values, "height": batch.sizes[:, 0], "width": batch.sizes[:, 1]}
    if unknown := sorted(wanted - known.keys()):
        raise MdmkitError(f"micro_conditioning: training knows no {unknown[0]!r} of a picture (known: {', '.join(known)})")
    return {key: known[key].to(device).float() for key in sorted(wanted)}


def restore(
    checkpoint: Checkpoint, parameters: dict[str, nn.Parameter], ema: EMA, optimizer: torch.optim.Optimizer
) -> None:
    """Load a checkpoint into a training, every name accounted for.

    Raises:
        MdmkitError: names or shapes differ, as when it was written from another recipe.
    """
    stored = checkpoint.tensors["model"]
    check_names(checkpoint.path, parameters, stored)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])
    ema.load_state_dict({"averages": checkpoint.tensors["ema"], "updates": checkpoint.facts["ema"]})
    load_named_state(optimizer, parameters.items(), checkpoint.tensors["optimizer"])


def check_names(path: Path, wanted: dict[str, Any], stored: dict[str, Tensor]) -> None:
    """Raise MdmkitError unless the stored tensors are exactly the wanted ones, by name and shape."""
    missing, left_over = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    shapes = [
        f"{name} {tuple(stored[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items() if name in stored and stored[name].shape != value.shape
    ]
    said = [
        f"{what}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for what, names in (("missing", missing), ("left over", left_over), ("other shape", shapes)) if names
    ]
    if said:
        raise MdmkitError(f"{path} is from another recipe: {'; '.join(said)}")


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Note SIGINT and SIGTERM instead of dying of them; a second one of a kind acts as usual."""
    asked = False
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: whoever runs us handles signals
        pass
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
