"""What does a nest cost beside a plain U-Net of the same FLOPs at the highest resolution?

    python benches/nest.py [--quick] [--threads N] [--device cuda]

A training step (forward, loss at every level, backward, AdamW) and a sampling step (forward alone) of the
quickstart's nest, 16 -> 32 with half of the rows at 16 only, and of a 32/64/128 nest. The plain U-Net is as
deep as the nest and as wide as comes nearest to its FLOPs; the answer is the ratio of the median times, over
the ratio of FLOPs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from typing import Any, NamedTuple

import torch
from about import about
from torch.utils.benchmark import Timer

from mdmkit.nn import NestedUNet, UNetCore, UNetShell
from mdmkit.nn.cost import forward_flops, inputs, on_meta

WIDTH, TOKENS = 64, 32  # of the text features


class Case(NamedTuple):
    """A nest: the settings of its levels, their resolutions, and the rows of a step at each."""

    levels: list[dict[str, Any]]
    sides: list[int]
    rows: list[int]


CASES = {
    "quickstart 16/32": Case(
        [
            {"channels": (32, 64), "blocks": 1, "attention": (0, 1)},
            {"channels": (16, 16), "blocks": 1},
        ],
        [16, 32],
        [32, 16],
    ),
    "32/64/128": Case(
        [
            {"channels": (64, 128, 192), "blocks": 2, "attention": (0, 1, 1)},
            {"channels": (32, 64), "blocks": 2},
            {"channels": (16, 32), "blocks": 2},
        ],
        [32, 64, 128],
        [4, 4, 4],
    ),
}


def nest_of(case: Case, device: str) -> NestedUNet:
    made: list[Any] = [UNetCore(**case.levels[0], norm_groups=8, cond_dim=WIDTH, device=device)]
    for settings in case.levels[1:]:
        told = {"inner_channels": made[-1].channels[0], "emb_dim": made[0].emb_dim}
        made.append(UNetShell(**settings, **told, norm_groups=8, device=device))
    return NestedUNet(made[0], made[1:])


def plain_of(case: Case, width: int, device: str) -> NestedUNet:
    """A U-Net at the highest resolution, as deep as the nest; as wide as 1, 2, 3, ... times `width`."""
    stages = sum(len(level["channels"]) for level in case.levels) - (len(case.levels) - 1)
    channels = tuple(width * min(i + 1, 6) for i in range(stages))
    attention = (*(0,) * (stages - 2), 1, 1)
    blocks = case.levels[0]["blocks"]
    core = UNetCore(
        channels=channels, blocks=blocks, attention=attention, norm_groups=8, cond_dim=WIDTH, device=device
    )
    return NestedUNet(core)


def flops(nest: NestedUNet, sides: list[int], rows: list[int]) -> int:
    """FLOPs of a forward pass."""
    given = inputs(nest, [(side, side) for side in sides], rows, TOKENS, WIDTH)
    return forward_flops(on_meta(nest), given)


def closest(case: Case, rows: int, wanted: int) -> tuple[int, int]:
    """The width of the plain U-Net whose FLOPs are closest, and those."""
    found = {w: flops(plain_of(case, w, "meta"), case.sides[-1:], [rows]) for w in range(8, 73, 8)}
    width = min(found, key=lambda w: abs(found[w] - wanted))
    return width, found[width]


def step_of(nest: NestedUNet, sides: list[int], rows: list[int], device: str, *, train: bool) -> Any:
    """A function that makes one step."""
    z = [torch.randn(count, 3, side, side, device=device) for side, count in zip(sides, rows, strict=True)]
    given = {
        "t": torch.rand(rows[0], device=device),
        "cond": torch.randn(rows[0], TOKENS, WIDTH, device=device),
        "cond_mask": torch.arange(TOKENS, device=device)[None]
        < torch.randint(1, TOKENS, (rows[0], 1), device=device),
    }
    optimizer = torch.optim.AdamW(nest.parameters(), lr=1e-4, fused=True)

    def training() -> None:
        loss = torch.stack(
            [(out - x).square().mean() for out, x in zip(nest(z, **given), z, strict=True)]
        ).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def sampling() -> None:
        nest(z, **given)

    return training if train else sampling


def compare(
    name: str, case: Case, *, train: bool, rounds: int, runs: int, threads: int, device: str
) -> dict[str, Any]:
    rows = case.rows if train else [case.rows[-1]] * len(case.rows)
    nest = nest_of(case, device)
    ours = flops(nest, case.sides, rows)
    width, theirs = closest(case, rows[-1], ours)
    steps = {
        "nest": step_of(nest, case.sides, rows, device, train=train),
        "plain": step_of(plain_of(case, width, device), case.sides[-1:], rows[-1:], device, train=train),
    }
    times: dict[str, list[float]] = {key: [] for key in steps}
    for step in steps.values():
        step()  # warm-up
    for _ in range(rounds):
        for key, step in steps.items():
            timer = Timer("step()", globals={"step": step}, num_threads=threads)
            times[key].append(timer.timeit(runs).mean)
    seconds = {key: statistics.median(taken) for key, taken in times.items()}
    return {
        "case": name,
        "step": "training" if train else "sampling",
        "nest_ms": round(1e3 * seconds["nest"], 2),
        "plain_ms": round(1e3 * seconds["plain"], 2),
        "nest_gflop": round(ours / 1e9, 3),
        "plain_gflop": round(theirs / 1e9, 3),
        "ratio_at_equal_flops": round(seconds["nest"] / seconds["plain"] * theirs / ours, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds of one run instead of 15 of three")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)

    print(f"{'nest':18} {'step':9} {'nest ms':>9} {'plain ms':>9} {'GFLOP':>8} {'plain':>8} {'ratio':>7}")
    results = []
    for name, case in CASES.items():
        for train in (True, False):
            rounds, runs = (3, 1) if options.quick else (15, 3)
            row = compare(
                name,
                case,
                train=train,
                rounds=rounds,
                runs=runs,
                threads=options.threads,
                device=options.device,
            )
            results.append(row)
            print(
                f"{name:18} {row['step']:9} {row['nest_ms']:9.1f} {row['plain_ms']:9.1f} "
                f"{row['nest_gflop']:8.2f} {row['plain_gflop']:8.2f} {row['ratio_at_equal_flops']:7.2f}",
                flush=True,
            )
    machine = None if options.device == "cpu" else torch.cuda.get_device_name(options.device)
    facts = {"threads": options.threads, "quick": options.quick, "results": results}
    print(json.dumps({**about("nest", machine=machine), **facts}))


if __name__ == "__main__":
    main()
