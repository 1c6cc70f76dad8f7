"""What a recipe may say: one attrs class a table. No torch."""

from __future__ import annotations

import attrs

from .options import Use, opt, slot

__all__ = ["Data", "Diffusion", "Evaluate", "Level", "Model", "Recipe", "Run", "Sample", "Train"]

SPACES = ("x0", "eps", "v", "flow")


@attrs.frozen
class Run:
    """Where and how the program runs."""

    seed: int = opt(0, "every random draw is a function of this, the step and the sample", ge=0)
    device: str = opt("auto", "auto: CUDA where there is one, else the CPU; or cpu, cuda, cuda:1")
    precision: str = opt("fp32", "bf16: autocast where the device has it", choices=("fp32", "bf16"))
    compile: bool = opt(False, "torch.compile each block")
    start: str | None = opt(
        None, "a model or run folder whose levels the run starts from; new ones grow on top"
    )
    threads: int | None = opt(None, "CPU threads of torch; as torch chooses where not given", ge=1)


@attrs.frozen
class Data:
    """The dataset and how it is read."""

    source: Use = slot("dataset", help="where samples come from", flat=True)
    picture_share: float = opt(
        0.0, "of a model of clips: the part of each batch's rows that are single pictures", ge=0.0, lt=1.0
    )
    pictures: Use | None = slot(
        "dataset", None, "where those pictures come from; frames of the clips where not given"
    )
    workers: int = opt(0, "processes that read and decode ahead; changes no number", ge=0)


@attrs.frozen
class Diffusion:
    """The diffusion process and the loss."""

    schedule: Use = slot("noise_schedule", "cosine", "how signal and noise mix over t")
    shift_power: float = opt(
        1.0, "p of the shift per level: logsnr_r = logsnr_0 - p ln(side_r / side_0)", ge=0.0
    )
    shift_power_frames: float | None = opt(
        None, "the same for the ratio of frames; 1 where averaged, 0 where picked, if not given", ge=0.0
    )
    frame_pooling: str = opt(
        "average",
        "a frame of an inner level: the average of several, or pick: the first of them",
        choices=("average", "pick"),
    )
    signal_scale: float = opt(1.0, "pictures are multiplied by it before noise is added", gt=0.0)
    signal_scale_power: float = opt(
        0.0, "p of another shift per level: signal_scale_r = signal_scale / (side_r / side_0)^p", ge=0.0
    )
    prediction: str = opt("v", "what the network predicts", choices=SPACES)
    loss_space: str = opt("eps", "where the loss is taken", choices=SPACES)
    loss: Use = slot("loss", "mse", "the pixel-wise distance")
    weighting: Use = slot("weighting", "uniform", "the loss weight over logsnr")
    time_sampler: Use = slot("time_sampler", "uniform", "the distribution of t in training")
    level_weights: tuple[float, ...] | None = opt(
        None, "one weight a level, low to high; all 1 where not given", ge=0.0
    )
    given: int = opt(
        0, "inner levels that are not denoised but given, drawn by another model (growth 'cascade')", ge=0
    )
    given_noise: float = opt(0.1, "noise that given levels are seen with, its deviation", ge=0.0, lt=1.0)


@attrs.frozen
class Level:
    """One level: its resolution, and the core (level 0) or shell (above) that works there."""

    resolution: int | tuple[int, int] = opt(help="side, or [height, width], in pixels", ge=1)
    network: Use = slot(
        ("core", "shell"), "unet", "the core (first table) or shell that works there", flat=True
    )


@attrs.frozen
class Model:
    """The network: a core and the shells around it, low resolution to high."""

    levels: tuple[Level, ...] = opt(
        help="levels[0] is the core; each later table wraps what stands before it"
    )
    attend: Use = slot("attention", "sdpa", "the backend of every attention")
    use_checkpoint: bool = opt(False, "trade compute for memory: recompute each block in the backward pass")


@attrs.frozen
class Train:
    """The training loop."""

    optimizer: Use = slot("optimizer", "adamw", "updates parameters from gradients")
    lr_schedule: Use = slot("lr_schedule", "warmup", "the factor on the learning rate over steps")
    steps: int | None = opt(None, "optimiser steps; here or in growth's stages", ge=1)
    batch: int | None = opt(
        None, "global batch over all ranks and accumulation; here or in growth's stages", ge=1
    )
    accumulate: int = opt(1, "micro-batches a step", ge=1)
    levels: Use = slot("resolution_sampler", "all", "which levels the rows of a batch train")
    clip: float | None = opt(1.0, 'largest gradient norm; "none": not clipped', gt=0.0)
    ema: float = opt(
        0.999, "decay of the averaged weights, with a warmup from the first step", ge=0.0, lt=1.0
    )
    caption_dropout: float = opt(0.1, "share of captions replaced by the empty string", ge=0.0, le=1.0)
    max_bad_steps: int = opt(5, "stop after so many NaN or infinite losses in a row", ge=1)
    checkpoint_every: int = opt(1000, "steps between checkpoints", ge=1)
    keep: int = opt(2, "checkpoints kept", ge=1)
    log_every: int = opt(10, "steps between lines of log.jsonl", ge=1)
    sample_every: int | None = opt(None, "steps between sample grids; only at the end where not given", ge=1)
    loggers: tuple[Use, ...] = slot(
        "logger", ("tensorboard",), "where numbers and pictures go, beside log.jsonl"
    )


@attrs.frozen
class Sample:
    """How pictures are drawn, during training, at its end and by `mdmkit sample`."""

    rule: Use = slot("sampler", "ddim", "the update rule")
    steps: int = opt(50, "denoising steps", ge=1)
    spacing: Use = slot("spacing", "uniform_t", "which times the rule visits")
    outer_from: float | None = opt(
        None, "an outer level runs from this logsnr of its own on; all from the start where not given"
    )
    guidance: tuple[Use, ...] = slot("guidance", (), "applied in order")
    threshold: Use | tuple[Use, ...] = slot(
        "threshold", "clip", "keeps predicted pictures in range; one for all levels, or one each, low to high"
    )
    prompts: tuple[str, ...] = opt((), "captions of the sample grid; from the data where empty")
    negative_prompt: str = opt("", "the text that guidance leads away from")
    count: int = opt(16, "pictures in the grid where no prompts are given", ge=1)
    batch: int = opt(16, "pictures drawn at a time; changes no picture", ge=1)
    seed: int = opt(0, "picture i has seed + i", ge=0)


@attrs.frozen
class Evaluate:
    """What is measured at the end of a run and by `mdmkit evaluate`."""

    metrics: tuple[Use, ...] = slot(
        "metric", (), "measured on pictures drawn for captions of the data, or on those of the data"
    )
    count: int = opt(256, "pictures for the metrics", ge=1)


@attrs.frozen(kw_only=True)
class Recipe:
    """A whole run."""

    format: int = opt(help="version of the recipe format", choices=(1,))
    summary: str = opt("", "one line that `mdmkit list` shows")
    requires: tuple[str, ...] = opt((), "package versions, e.g. acme>=1.2")
    run: Run = attrs.field(factory=Run)
    data: Data = opt(help="the dataset")
    text: Use | None = slot("text_encoder", None, "captions to features; unconditional where not given")
    diffusion: Diffusion = attrs.field(factory=Diffusion)
    model: Model = opt(help="the network")
    train: Train = attrs.field(factory=Train)
    growth: Use = slot("growth", "none", "which levels exist at which step")
    sample: Sample = attrs.field(factory=Sample)
    evaluate: Evaluate = attrs.field(factory=Evaluate)
