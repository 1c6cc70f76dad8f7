"""The training loop, in one function."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mdmkit.data.by_size import BySize
from mdmkit.data.loader import Batch, batches
from mdmkit.errors import MdmkitError
from mdmkit.pyramid import of_one_frame, pyramid
from mdmkit.resolutions import level_factors
from mdmkit.stages import Watch, ramp
from mdmkit.streams import seed_of
from mdmkit.times import LearnsFromLosses

from .conditions import micro_conditions, text_conditions
from .draws import Rows, draw_noise, dropped, micro_batches, numbered, self_conditioned, stopping
from .ema import EMA
from .folder import forget_growth, grow_asked, growth_taken
from .objective import Losses, row_losses
from .optim import named_state, set_apart
from .parallel import World, autocast
from .plan import Group, Parts, Plan, beside_the_model, step_groups, trained_parameters
from .signals import Interrupted, stop_signals
from .state import Checkpoint, load_parts, parts_state, restore, save

__all__ = ["train"]


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

    Of a growing network this is one stage, which may also end before: on a plateau, or because a file
    `grow-now` lies in the run folder. Its last checkpoint says `ends_stage`; `state.grow` makes of it what
    the next stage resumes from.

    Every draw is a function of (seed, step, place in the batch): there is no generator to save, and a resumed
    run on the same CPU threads, workers and ranks repeats the bits of the run that was never stopped.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the state at that step is saved.
        MdmkitError: too many bad steps or unreadable samples in a row, a full disk, a checkpoint that does
            not fit, an input that a component refuses.
    """
    levels, phase = len(parts.resolutions), plan.phase
    parameters = trained_parameters(parts.nest, parts.text)
    optimized = parameters | beside_the_model(parts.weighting)
    ema = EMA(parameters, decay=plan.ema)
    for group in parts.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    step = bad_steps = bad_in_row = skipped = truncated = 0
    # since the log's last line: losses and gradient norm, and the steps that each (level) took part in
    sums, taken = torch.zeros(levels + 1, dtype=torch.float64, device=device), [0] * (levels + 1)
    set_apart(parts.optimizer, [p for name, p in parameters.items() if name in phase.new])
    learns = {name: p.requires_grad for name, p in parameters.items()}  # rotary frequencies do not
    watch = None if phase.plateau is None else Watch(phase.plateau)
    remembering = parts.remembering() | ({} if watch is None else {"plateau": watch})
    begins = resume is not None and resume.step == phase.first
    if resume is not None:
        # what is new has no state yet, nor has what watches the stage
        new = phase.new if begins else frozenset()
        restore(resume, parameters, ema, parts.optimizer, optimized, new=new)
        load_parts(resume, remembering, begins=begins)
        step, bad_steps, bad_in_row = resume.step, resume.facts["bad_steps"], resume.facts["bad_in_row"]
        sums, taken = (
            torch.tensor(resume.facts["sums"], dtype=torch.float64, device=device),
            list(resume.facts["taken"]),
        )
        if world.is_main:  # counted over all ranks
            skipped, truncated = resume.facts["skipped"], resume.facts["truncated"]
    if world.is_main:
        forget_growth(run_dir, step)
    weights = torch.tensor(plan.level_weights or [1.0] * levels, device=device)
    times = parts.time_sampler if isinstance(parts.time_sampler, LearnsFromLosses) else None
    given = parts.objective.diffusion.given  # inner levels without a loss
    parts.nest.train()

    def groups_of(at: int) -> tuple[Group, ...]:
        return step_groups(plan, at, resolution_sampler=parts.resolution_sampler, ranks=world.size)

    def rows_of(group: Group) -> list[Rows]:
        return micro_batches(
            group.per_level,
            rank=world.rank,
            ranks=world.size,
            accumulate=plan.accumulate,
            first=group.first,
        )

    def positions() -> Iterator[list[int]]:
        for at in range(step, plan.steps):
            for group in groups_of(at):
                before = phase.pictures + (at - phase.first) * group.per_level[0] - group.first
                numbers = [before + place for rows in rows_of(group) for place in rows.places]
                if parts.beside is not None:  # clips and pictures each go on where they were
                    numbers = [parts.beside.position(n, picture=group.pictures) for n in numbers]
                yield numbers

    def pictures(at: int) -> int:
        return phase.pictures + (at - phase.first) * plan.batch

    def frozen(at: int) -> bool:
        return at - phase.first < phase.freeze

    def hold(still: bool) -> nn.Module:
        """The objective, what was there before this stage held still or free."""
        for name, p in parameters.items():
            p.requires_grad_(learns[name] and (not still or name in phase.new))
        return world.wrap(parts.objective)

    def positions_by_size(by_size: BySize) -> Iterator[list[int]]:
        # each level goes through pictures of its own
        for at in range(step, plan.steps):
            (group,) = groups_of(at)
            steps, multiple = at - phase.first, world.size * plan.accumulate
            before = stopping(parts.resolution_sampler.so_far(steps, plan.batch, multiple))
            before = [phase.pictures + count for count in before]  # not those of the stages before again
            rows = [row for rows in rows_of(group) for row in numbered(rows, group.per_level, before)]
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
                "pictures": pictures(step),
                "seconds": seconds,
                "pictures_per_second": plan.batch / seconds,
            },
        )

    def checkpoint(ends_stage: bool) -> None:
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
                "pictures": pictures(step),
                "ema": ema.updates,
                "stage": phase.index,
                "first": phase.first,
                "pictures_before": phase.pictures,
                "ends_stage": ends_stage and not phase.last,
            }
            tensors = {
                "model": parameters,
                "ema": ema.averages,
                "optimizer": named_state(parts.optimizer, optimized.items()),
            }
            if remembered := parts_state(remembering):
                tensors["parts"] = remembered
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
                parts.by_size or parts.beside or parts.dataset,
                positions_by_size(parts.by_size) if parts.by_size else positions(),
                workers=plan.workers,
                pin_memory=device.type == "cuda",
            )
        ) as loader,
    ):
        if resume is not None and not begins:  # the pictures of the stage before are drawn
            sample()  # the run may have been stopped between its checkpoint and its pictures
        objective = hold(frozen(step))
        started, timed_from = time.perf_counter(), step
        # the groups of a step come one after another
        for read in zip(*[iter(loader)] * (2 if plan.picture_share else 1), strict=True):
            factor = parts.lr_schedule.factor(step)
            at = step - phase.first
            warm = min(1.0, (at + 1) / phase.warmup) if phase.warmup else 1.0
            for group in parts.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor * (warm if group["new"] else 1.0)
            if at == phase.freeze > 0:
                objective = hold(False)
            fade = ramp(at, phase.fade)
            fading = weights if fade == 1 else faded(weights, phase.new_levels, fade)
            parts.nest.gains = tuple(fade if r in phase.new_levels else 1.0 for r in range(1, levels))  # type: ignore
            groups = groups_of(step)
            micros = [
                micro
                for group, batch in zip(groups, read, strict=True)
                for micro in cut_up(batch, rows_of(group))
            ]
            totals = [sum(counts) for counts in zip(*(group.per_level for group in groups), strict=True)]
            reached = len(totals)
            factors = level_factors(parts.resolution_sampler, totals)
            counted = fading[:reached]
            if set(factors) != {1.0}:
                counted = counted * counted.new_tensor(factors)
            cut = getattr(parts.text, "truncated", 0)
            losses = torch.zeros(levels, device=device)
            seen: Tensor | None = None
            for index, (part, rows) in enumerate(micros):
                # every row of the global batch counts alike
                share = counted.new_tensor([
                    world.size * n / total for n, total in zip(rows.per_level, totals, strict=True)
                ])
                # dropout inside the network is the only draw left to torch's own generator
                torch.manual_seed(seed_of(plan.seed, step, rows.places[0], "dropout"))
                last = index == len(micros) - 1
                with contextlib.nullcontext() if last or world.size == 1 else objective.no_sync():  # type: ignore[operator]
                    said, t = forward(objective, parts, plan, part, rows, step, device)
                    (said.trained * counted * share).sum().backward()
                losses[:reached] += said.plain * share
                if times is not None:
                    told = times.tally(t, row_losses(said.rows, fading))
                    seen = told if seen is None else seen + told
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), plan.clip or float("inf"))
            finite = torch.isfinite(losses).all() & torch.isfinite(norm)
            # the one moment of a step at which the CPU waits for the device; growth is rank 0's decision
            flat = watch is not None and watch.reached(float((losses[:reached] * weights[:reached]).sum()))
            asked = not phase.last and world.is_main and grow_asked(run_dir, step + 1)
            bad, stop, unread, enough = world.any(
                ~finite,
                asked_to_stop(),
                any(batch.skipped for batch in read),
                world.is_main and not phase.last and (flat or asked),
                device=device,
            )
            truncated += getattr(parts.text, "truncated", 0) - cut
            passed_over = [bad for batch in read for bad in batch.skipped]
            skipped += len(passed_over)
            for key, cause in world.gather(passed_over) if unread else ():
                on_event(step + 1, "skipped_sample", {"key": key, "cause": cause})
            if bad:
                bad_steps, bad_in_row = bad_steps + 1, bad_in_row + 1
                said = {f"loss.{r}": loss for r, loss in enumerate(losses[:reached].tolist()) if r >= given}
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
                if times is not None and seen is not None:
                    times.observe(world.total(seen))
                sums += torch.cat([losses, norm.reshape(1)]).double()
                taken = [count + (given <= r < reached or r == levels) for r, count in enumerate(taken)]
            parts.optimizer.zero_grad(set_to_none=True)
            step += 1
            on_step(step, {"loss": losses, "grad_norm": norm})
            done = step == plan.steps or enough
            if done and step < plan.steps:
                on_event(step, "stage_ends", {"stage": phase.index, "cause": "asked" if asked else "plateau"})
            if done or step % plan.log_every == 0:
                log((time.perf_counter() - started) / max(step - timed_from, 1))
                sums.zero_()
                taken = [0] * (levels + 1)
                started, timed_from = time.perf_counter(), step
            paused = time.perf_counter()
            if done or stop or step % plan.checkpoint_every == 0:
                checkpoint(done)
            if done:
                if world.is_main:
                    growth_taken(run_dir)
                if not phase.last:  # a signal that came in the meantime is not lost between two stages
                    (late,) = world.any(asked_to_stop(), device=device)
                    stop = stop or late
            if stop and not (done and phase.last):
                on_event(step, "interrupted", {})
                raise Interrupted(f"interrupted at step {step}, and saved; go on with --resume {run_dir}")
            if done:
                break
            sample()
            started += time.perf_counter() - paused  # a step's seconds are those of training alone
    parts.nest.gains = (1.0,) * (levels - 1)  # type: ignore
    return ema


def cut_up(batch: Batch, micros: Sequence[Rows]) -> Iterator[tuple[Batch, Rows]]:
    """Each micro-batch's part of what was read for them."""
    first = 0
    for rows in micros:
        yield batch.rows(first, first + len(rows.places)), rows
        first += len(rows.places)


def faded(weights: Tensor, levels: range, share: float) -> Tensor:
    """Level weights, those of some levels at a share."""
    factors = [share if r in levels else 1.0 for r in range(len(weights))]
    return weights * torch.tensor(factors, device=weights.device)


def forward(
    objective: nn.Module, parts: Parts, plan: Plan, batch: Batch, rows: Rows, step: int, device: torch.device
) -> tuple[Losses, Tensor]:
    """The losses of one micro-batch, with all its draws, and the times of its rows."""
    pictures = batch.images.to(device, non_blocking=True).float() / 127.5 - 1
    sizes = parts.resolutions[: len(rows.per_level)]
    if len(sizes[0]) == 3 and pictures.ndim == 4:  # a picture is a clip of one frame
        pictures = pictures.unsqueeze(2)
    elif len(sizes[0]) == 2 and pictures.ndim == 5 and parts.frames is None:
        pictures = pictures.squeeze(2)
    if len(sizes[0]) == 3 and pictures.shape[2] == 1:
        sizes = of_one_frame(sizes)
    x = pyramid(pictures, sizes, rows.per_level, frames=parts.frames, pick=parts.pick)
    eps = draw_noise(rows, sizes, seed=plan.seed, step=step, device=device)
    t = parts.time_sampler.draw(plan.seed, step, list(rows.places), plan.batch)
    given: dict[str, Any] = {}
    if getattr(parts.nest, "self_conditioning", False):
        given["estimated"] = self_conditioned(rows, seed=plan.seed, step=step)
    if isinstance(parts.time_sampler, LearnsFromLosses):
        given["importance"] = parts.time_sampler.importance(t).to(device)
    t = t.to(device)
    drop = dropped(rows, plan.caption_dropout, seed=plan.seed, step=step)
    micros = micro_conditions(parts.nest, batch, device)
    try:
        text = text_conditions(parts.text, batch, drop, device)
        with autocast(plan.precision, device):
            return objective(x, eps, t, micros=micros, **text, **given), t
    except ValueError as error:  # a component's own words: an unknown class, a caption without features
        raise MdmkitError(f"step {step + 1}: {error}") from error
