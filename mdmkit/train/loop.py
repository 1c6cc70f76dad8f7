"""The training loop, in one function."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mdmkit.data.by_size import BySize
from mdmkit.data.loader import Batch, batches
from mdmkit.errors import MdmkitError, WrongInput
from mdmkit.pyramid import pyramid
from mdmkit.resolutions import level_factors, step_rows
from mdmkit.streams import seed_of

from .conditions import micro_conditions, text_conditions
from .draws import Rows, draw_noise, dropped, micro_batches, numbered, stopping
from .ema import EMA
from .objective import Objective
from .optim import named_state
from .parallel import World, autocast
from .signals import Interrupted, stop_signals
from .state import Checkpoint, restore, save

__all__ = ["Parts", "Plan", "reached_rows", "train", "trained_parameters"]


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
    frames: tuple[int, ...] | None = None  # of each level's pictures, where these are grids of frames
    by_size: BySize | None = None  # read instead of the dataset where rows stop at their picture's size


def trained_parameters(nest: nn.Module, text: nn.Module | None) -> dict[str, nn.Parameter]:
    """What is trained, by its name in a checkpoint: the nest's own, a learning text encoder's `text.*`."""
    named = dict(nest.named_parameters())
    if text is not None and getattr(text, "trainable", False):
        named |= {f"text.{name}": parameter for name, parameter in text.named_parameters()}
    return named


def reached_rows(
    plan: Plan, step: int, *, resolution_sampler: Any, growth: Any, ranks: int = 1
) -> tuple[int, ...]:
    """How many rows of the global batch reach each level that this step trains, low to high.

    Raises:
        WrongInput: the batch does not split over ranks and micro-batches.
    """
    try:
        counts = step_rows(resolution_sampler, plan.seed, step, plan.batch, multiple=ranks * plan.accumulate)
    except ValueError as error:
        raise WrongInput(
            f"train.levels on {ranks} ranks, in {plan.accumulate} micro-batches: {error}"
        ) from error
    return tuple(count for count in counts[: growth.stage(step).levels] if count)


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

    Every draw is a function of (seed, step, place in the batch): there is no generator to save, and a resumed
    run on the same CPU threads, workers and ranks repeats the bits of the run that was never stopped.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the state at that step is saved.
        MdmkitError: too many bad steps or unreadable samples in a row, a full disk, a checkpoint that does
            not fit, an input that a component refuses.
    """
    levels = len(parts.resolutions)
    parameters = trained_parameters(parts.nest, parts.text)
    ema = EMA(parameters, decay=plan.ema)
    for group in parts.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    step = bad_steps = bad_in_row = skipped = truncated = 0
    # since the log's last line: losses and gradient norm, and the steps that each (level) took part in
    sums, taken = torch.zeros(levels + 1, dtype=torch.float64, device=device), [0] * (levels + 1)
    if resume is not None:
        restore(resume, parameters, ema, parts.optimizer)
        step, bad_steps, bad_in_row = resume.step, resume.facts["bad_steps"], resume.facts["bad_in_row"]
        sums, taken = (
            torch.tensor(resume.facts["sums"], dtype=torch.float64, device=device),
            list(resume.facts["taken"]),
        )
        if world.is_main:  # counted over all ranks
            skipped, truncated = resume.facts["skipped"], resume.facts["truncated"]
    weights = torch.tensor(plan.level_weights or [1.0] * levels, device=device)
    objective = world.wrap(parts.objective)
    parts.nest.train()

    def counts_of(at: int) -> tuple[int, ...]:
        return reached_rows(
            plan, at, resolution_sampler=parts.resolution_sampler, growth=parts.growth, ranks=world.size
        )

    def rows_of(at: int) -> list[Rows]:
        return micro_batches(counts_of(at), rank=world.rank, ranks=world.size, accumulate=plan.accumulate)

    def positions() -> Iterator[list[int]]:
        for at in range(step, plan.steps):
            yield [at * plan.batch + place for rows in rows_of(at) for place in rows.places]

    def positions_by_size(by_size: BySize) -> Iterator[list[int]]:
        # each level goes through pictures of its own
        for at in range(step, plan.steps):
            counts = counts_of(at)
            reached = parts.resolution_sampler.so_far(at, plan.batch, world.size * plan.accumulate)
            before = stopping(reached)
            rows = [row for rows in rows_of(at) for row in numbered(rows, counts, before)]
            yield [by_size.position(level, number) for level, number in rows]

    def log(seconds: float) -> None:
        counts = world.sum(skipped, truncated, device=device)
        means = (world.mean(sums) / torch.tensor(taken, device=device).clamp(min=1)).tolist()
        by_level = {f"loss.{r}": means[r] for r in range(levels) if taken[r]}
        total = sum(weight * mean for weight, mean in zip(weights.tolist(), means[:-1], strict=True))
        if not taken[-1]:  # every step was bad
            total = means[-1] = float("nan")
        on_log(
            step,
            {
                "loss": total,
                **by_level,
                "grad_norm": means[-1],
                "lr": parts.optimizer.param_groups[0]["lr"],
                "bad_steps": bad_steps,
                "skipped": counts[0],
                "truncated": counts[1],
                "pictures": step * plan.batch,
                "seconds": seconds,
                "pictures_per_second": plan.batch / seconds,
            },
        )

    def checkpoint() -> None:
        # every rank goes on from what the checkpoint says, as it will when it is resumed
        sums.copy_(world.mean(sums))
        counts = world.sum(skipped, truncated, device=device)
        if world.is_main:
            facts = {
                "bad_steps": bad_steps,
                "bad_in_row": bad_in_row,
                "skipped": counts[0],
                "truncated": counts[1],
                "sums": sums.tolist(),
                "taken": taken,
                "pictures": step * plan.batch,
                "ema": ema.updates,
            }
            tensors = {
                "model": parameters,
                "ema": ema.averages,
                "optimizer": named_state(parts.optimizer, parameters.items()),
            }
            before_checkpoint()  # the log reaches the disk first: it never ends before a visible checkpoint
            on_checkpoint(step, save(run_dir / "checkpoints", step, tensors, facts, texts, keep=plan.keep))
        world.barrier()

    def sample() -> None:
        if on_sample is not None and sample_every and step % sample_every == 0 and 0 < step < plan.steps:
            on_sample(step, ema)
            parts.nest.train()

    with (
        stop_signals() as asked_to_stop,
        contextlib.closing(
            batches(
                parts.by_size or parts.dataset,
                positions_by_size(parts.by_size) if parts.by_size else positions(),
                workers=plan.workers,
                pin_memory=device.type == "cuda",
            )
        ) as loader,
    ):
        if resume is not None:
            sample()  # the run may have been stopped between its checkpoint and its pictures
        started, timed_from = time.perf_counter(), step
        for batch in loader:
            factor = parts.lr_schedule.factor(step)
            for group in parts.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            micros = rows_of(step)
            reached = len(micros[0].per_level)
            factors = level_factors(parts.resolution_sampler, micros[0].per_level)
            counted = weights[:reached]
            if set(factors) != {1.0}:
                counted = counted * counted.new_tensor(factors)
            cut = getattr(parts.text, "truncated", 0)
            losses = torch.zeros(levels, device=device)
            offset = 0
            for index, rows in enumerate(micros):
                part = batch.rows(offset, offset + len(rows.places))
                offset += len(rows.places)
                # dropout inside the network is the only draw left to torch's own generator
                torch.manual_seed(seed_of(plan.seed, step, rows.places[0], "dropout"))
                last = index == len(micros) - 1
                with contextlib.nullcontext() if last or world.size == 1 else objective.no_sync():  # type: ignore[operator]
                    by_level = forward(objective, parts, plan, part, rows, step, device)
                    ((by_level * counted).sum() / len(micros)).backward()
                losses[:reached] += by_level.detach() / len(micros)
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), plan.clip or float("inf"))
            finite = torch.isfinite(losses).all() & torch.isfinite(norm)
            # the one moment of a step at which the CPU waits for the device
            bad, stop, unread = world.any(~finite, asked_to_stop(), bool(batch.skipped), device=device)
            truncated += getattr(parts.text, "truncated", 0) - cut
            skipped += len(batch.skipped)
            for key, cause in world.gather(batch.skipped) if unread else ():
                on_event(step + 1, "skipped_sample", {"key": key, "cause": cause})
            if bad:
                bad_steps, bad_in_row = bad_steps + 1, bad_in_row + 1
                said = {f"loss.{r}": loss for r, loss in enumerate(losses[:reached].tolist())}
                on_event(step + 1, "bad_step", {**said, "grad_norm": float(norm), "in_row": bad_in_row})
                if bad_in_row >= plan.max_bad_steps:
                    raise MdmkitError(
                        f"{bad_in_row} steps in a row had a loss or gradient that is not finite (the last is "
                        f"step {step + 1}); lower train.optimizer.lr or train.clip, or start from an earlier "
                        "checkpoint"
                    )
            else:
                bad_in_row = 0
                parts.optimizer.step()
                ema.update()
                sums += torch.cat([losses, norm.reshape(1)]).double()
                taken = [count + (r < reached or r == levels) for r, count in enumerate(taken)]
            parts.optimizer.zero_grad(set_to_none=True)
            step += 1
            on_step(step, {"loss": losses, "grad_norm": norm})
            done = step == plan.steps
            if done or step % plan.log_every == 0:
                log((time.perf_counter() - started) / max(step - timed_from, 1))
                sums.zero_()
                taken = [0] * (levels + 1)
                started, timed_from = time.perf_counter(), step
            paused = time.perf_counter()
            if done or stop or step % plan.checkpoint_every == 0:
                checkpoint()
            if stop and not done:
                on_event(step, "interrupted", {})
                raise Interrupted(f"interrupted at step {step}, and saved; go on with --resume {run_dir}")
            sample()
            started += time.perf_counter() - paused  # a step's seconds are those of training alone
    return ema


def forward(
    objective: nn.Module, parts: Parts, plan: Plan, batch: Batch, rows: Rows, step: int, device: torch.device
) -> Tensor:
    """The losses by level of one micro-batch, with all its draws."""
    pictures = batch.images.to(device, non_blocking=True).float() / 127.5 - 1
    sizes = parts.resolutions[: len(rows.per_level)]
    x = pyramid(pictures, sizes, rows.per_level, frames=parts.frames)
    eps = draw_noise(rows, parts.resolutions, seed=plan.seed, step=step, device=device)
    t = parts.time_sampler.draw(plan.seed, step, list(rows.places), plan.batch).to(device)
    drop = dropped(rows, plan.caption_dropout, seed=plan.seed, step=step)
    micros = micro_conditions(parts.nest, batch, device)
    try:
        text = text_conditions(parts.text, batch, drop, device)
        with autocast(plan.precision, device):
            return objective(x, eps, t, micros=micros, **text)
    except ValueError as error:  # a component's own words: an unknown class, a caption without features
        raise MdmkitError(f"step {step + 1}: {error}") from error
