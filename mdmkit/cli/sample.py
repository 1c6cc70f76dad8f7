"""`mdmkit sample`: draw pictures with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdmkit.errors import WrongInput

from .open_model import Model, Weights, check_weights, open_model
from .options import Plugins, Sets
from .sample_clips import Begun, ClipSources, Continues, FirstFrames, FrameCount, LastFrames, Overlap
from .sample_edit import Canvas, Init, Low, Mask, Passes, Sources, Strength, ToPrompt, ToSeed
from .sample_micros import Micro, frame_rate, micros_of
from .sample_prompts import Region, WeightedPrompts, check_prompts, regions_of

if TYPE_CHECKING:
    import torch

    from mdmkit.recipe.schema import Recipe
    from mdmkit.sampling.conditions import Conditions

__all__ = ["command"]


def command(
    sets: Sets,
    plugins: Plugins,
    model: Model,
    prompt: Annotated[list[str] | None, typer.Option(help="a caption; may be given often")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="the text that guidance leads away from; the recipe's where not given")
    ] = None,
    weighted_prompts: WeightedPrompts = False,
    region: Region = None,
    features: Annotated[
        Path | None, typer.Option(help="draw for the text features of this safetensors file, no prompts")
    ] = None,
    count: Annotated[int, typer.Option(help="pictures a prompt")] = 1,
    levels: Annotated[int | None, typer.Option(help="run only the inner levels, at their cost")] = None,
    steps: Annotated[int | None, typer.Option(help="denoising steps; the recipe's where not given")] = None,
    seed: Annotated[
        int | None, typer.Option(help="picture i has seed + i; the recipe's where not given")
    ] = None,
    init: Init = None,
    strength: Strength = None,
    mask: Mask = None,
    low: Low = None,
    passes: Passes = None,
    to_seed: ToSeed = None,
    to_prompt: ToPrompt = None,
    canvas: Canvas = None,
    first_frames: FirstFrames = None,
    last_frames: LastFrames = None,
    continues: Continues = None,
    overlap: Overlap = None,
    frames: FrameCount = None,
    micro: Micro = None,
    out: Annotated[
        Path | None, typer.Option(help="a folder for the pictures; MODEL/drawn where not given")
    ] = None,
    intermediate: Annotated[int, typer.Option(help="also keep so many predictions on the way")] = 0,
    clip_format: Annotated[
        str | None, typer.Option(help="of clips: gif (where not given), mp4, or png, a folder of frames each")
    ] = None,
    noise_device: Annotated[str | None, typer.Option(help="cpu: the same picture on every device")] = None,
    weights: Weights = None,
) -> None:
    """Draw pictures for captions at every level: a labelled grid a level, and each picture as a PNG."""
    from mdmkit import assemble, cascade
    from mdmkit.evaluate.clips import CLIP_FORMATS, check_format, save_clip, save_contact_sheet
    from mdmkit.evaluate.grid import save_grid, save_picture
    from mdmkit.model_folder import load
    from mdmkit.sampling.sequence import Link, draw_in_sequence, whole_levels
    from mdmkit.text import WeightedPrompts as weighing
    from mdmkit.train.folder import free_name, one_line_disk_errors, refuse_full
    from mdmkit.train.memory import one_line_memory_errors
    from mdmkit.train.parallel import autocast, pick_device

    for name, value in (("--count", count), ("--steps", steps), ("--levels", levels)):
        if value is not None and value < 1:
            raise WrongInput(f"sample {name}: expected a number of at least 1, got {value}")
    check_weights("sample", weights)
    if noise_device not in (None, "cpu"):
        raise WrongInput(
            f"sample --noise-device: expected cpu, or nothing for the model's own, got '{noise_device}'"
        )
    if clip_format is not None and clip_format not in CLIP_FORMATS:
        raise WrongInput(
            f"sample --clip-format: expected one of {', '.join(CLIP_FORMATS)}, got '{clip_format}'"
        )
    moving = ClipSources(first_frames, last_frames, continues, overlap, frames)
    sources = Sources(init, strength, mask, low, to_seed, to_prompt, canvas, passes, bool(moving.given))
    given = {"sample.steps": steps, "sample.seed": seed}
    overrides = [*sets, *(f"{name}={value}" for name, value in given.items() if value is not None)]
    folder, recipe, registry = open_model(model, overrides, plugins, allow_pipe=True)  # no data is read
    if levels is not None and levels > len(recipe.model.levels):
        most = len(recipe.model.levels)
        raise WrongInput(f"sample --levels: expected 1 to {most}, got {levels}: the model has no more")
    moving.check(recipe)
    micros = micros_of(micro or (), recipe, levels)
    if not 0 <= intermediate < recipe.sample.steps:
        most = recipe.sample.steps - 1
        raise WrongInput(
            f"sample --intermediate: expected 0 to {most}, fewer than the steps, got {intermediate}"
        )
    refuse_text(
        recipe,
        {
            "--prompt": prompt,
            "--negative-prompt": negative_prompt,
            "--to-prompt": to_prompt,
            "--weighted-prompts": weighted_prompts or None,
            "--region": region,
            "--features": features,
        },
    )
    conditions = conditions_of(features, recipe) if features else None
    if conditions is not None:
        prompts = [f"row {row}" for row in range(conditions.pictures)]
        conditions = conditions.rows([row for row in range(len(prompts)) for _ in range(count)], "cpu")
    else:
        prompts = list(prompt or (recipe.sample.prompts if recipe.text else ()))
    if not prompts and recipe.text is not None:
        raise WrongInput("sample: give at least one --prompt (the recipe has no sample.prompts)")
    prompts = prompts or [""]
    sources.check_way(prompts, count)
    captions = sources.captions(prompts, count)
    seeds = sources.seeds(recipe.sample.seed, len(prompts), count)
    negative = recipe.sample.negative_prompt if negative_prompt is None else negative_prompt
    regions = regions_of(region or (), recipe, sources)
    if weighted_prompts:
        more = (negative, *([to_prompt] if to_prompt else ()), *(regions.prompts if regions else ()))
        check_prompts([*prompts, *more])
    trained = assemble.resolutions(recipe, levels)
    clips = len(trained[0]) == 3
    if clip_format is not None and not clips:
        raise WrongInput("sample --clip-format: the model draws pictures, not clips; leave it out")
    check_format(clip_format or "gif")
    target = out or free_name(model, "drawn")
    refuse_full(target)
    device = pick_device(recipe.run.device)
    rate = frame_rate(recipe, micros)
    if clips:
        resolutions, windows = moving.windows(trained, canvas)
        begun = moving.begun(sources, resolutions, recipe, trained=trained[-1][0], rate=rate)
    else:
        resolutions, windows = sources.windows(trained, recipe)
        begun = Begun(*sources.pictures(resolutions, recipe))
    known = begun.known
    moves = clips and (resolutions[-1][0] > 1 or clip_format is not None)
    kept: dict[int, dict[int, tuple[torch.Tensor, ...]]] = {}
    wanted = {round((i + 1) * recipe.sample.steps / (intermediate + 1)) for i in range(intermediate)}

    def keep(indices: Sequence[int], step: int, at: Any, said: Any) -> None:
        if step in wanted:
            there = kept.setdefault(step, {})
            for row, i in enumerate(indices):  # models in sequence: each shows what it adds
                inner = there.get(i, ())
                there[i] = (*inner, *(level[row].cpu() for level in said.x0[len(inner) :]))

    with one_line_disk_errors(target), one_line_memory_errors("lower sample.batch, or draw fewer --levels"):
        target.mkdir(parents=True, exist_ok=True)  # before the work: it may be refused
        nest, text = load(
            folder, recipe, registry, device=device, weights=weights, encoder=conditions is None
        )
        diffusion = assemble.diffusion(recipe, registry)
        inner: list[Link] = []
        if diffusion.given > (0 if known is None else whole_levels(known)):
            how: dict[str, Any] = {"text": text, "weights": weights, "encoder": conditions is None}
            inner = cascade.beside(folder, recipe, registry, device=device, **how)

        def told(model: Link) -> Conditions:
            if conditions is not None:
                return conditions
            encode = weighing(model.text) if weighted_prompts and model.text else model.text
            return sources.conditions(encode, prompts[0], negative, count)

        try:
            with autocast(recipe.run.precision, device):
                drawing = assemble.drawing(recipe, registry, device=device)
                pyramids = draw_in_sequence(
                    [*inner, Link(nest, text, diffusion, drawing)],
                    resolutions=resolutions,
                    captions=captions,
                    negative=negative,
                    conditions=None if conditions is None and to_prompt is None else told,
                    seed=recipe.sample.seed,
                    seeds=seeds,
                    start=begun.start,
                    known=known,
                    windows=windows,
                    regions=regions,
                    weighted=weighted_prompts,
                    micros=micros or None,
                    batch=recipe.sample.batch,
                    device=device,
                    noise_device=noise_device,
                    callback=keep if wanted else None,
                )
        except ValueError as error:  # a component's own words, as of an unknown class
            raise WrongInput(f"sample: {error}") from error
        if cut := getattr(text, "truncated", 0):
            print(f"{cut} prompts were cut to the encoder's length", file=sys.stderr)
        save_page = save_contact_sheet if clips else save_grid
        for r, side in enumerate(resolutions):
            name = f"{'sheet' if clips else 'grid'}-level-{r}-{'x'.join(map(str, side))}"
            path = target / f"{name}.png"
            save_page(path, [pyramid[r].cpu() for pyramid in pyramids], captions)
            print(path)
            for step, rows in sorted(kept.items()):
                if len(rows[0]) <= r:
                    continue  # before this level joined
                way = target / f"{name}-after-{step:04d}.png"
                save_page(way, [rows[i][r] for i in range(len(rows))], captions)
                print(way)
        for i, pyramid in enumerate(pyramids):
            number = recipe.sample.seed + i if seeds is None else i
            if moves:
                path, clip = target / f"clip-{number:05d}", begun.whole(pyramid[-1].cpu())
                save_clip(path, clip, fps=rate, format=clip_format or "gif")
            else:
                picture = pyramid[-1][:, 0] if clips else pyramid[-1]
                save_picture(target / f"picture-{number:05d}.png", picture.cpu())
    print(f"{len(pyramids)} {'clips' if moves else 'pictures'} in {target}", file=sys.stderr)


def refuse_text(recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Refuse options about text that nothing would read.

    Raises:
        WrongInput: there is one.
    """
    from mdmkit.recipe.checks import leads_away

    there = [name for name, value in given.items() if value not in (None, [])]
    if there and recipe.text is None:
        raise WrongInput(
            f"sample {there[0]}: the model reads no text (its recipe has no [text]); leave it out"
        )
    if "--features" in there and len(there) > 1:
        raise WrongInput(
            f"sample {there[0]}: --features brings the text of every picture, the negative one too; "
            "leave one of the two out"
        )
    if "--negative-prompt" in there and not leads_away(recipe.sample):
        raise WrongInput(
            "sample --negative-prompt: nothing leads away from it, as no sample.guidance of the recipe does; "
            "add --set 'sample.guidance=[{use=\"cfg\", scale=5.0}]'"
        )


def conditions_of(file: Path, recipe: Recipe) -> Conditions:
    """The stored features to draw for.

    Raises:
        WrongInput: there are none, or they do not fit the model.
    """
    from mdmkit import assemble
    from mdmkit.recipe.checks import leads_away
    from mdmkit.sampling.conditions import read

    try:
        conditions = read(file)
    except ValueError as error:
        raise WrongInput(f"sample --features: {error}") from error
    width = assemble.cond_dim(recipe)
    assert conditions.cond is not None
    if conditions.cond.shape[2] != width:
        raise WrongInput(
            f"sample --features: {file}: expected features of width {width}, which the model is built for, "
            f"got {conditions.cond.shape[2]}"
        )
    if leads_away(recipe.sample) and conditions.uncond is None:
        raise WrongInput(
            f"sample --features: {file}: has no negative_features, which guidance leads away from; add them "
            "(those of the empty prompt), or draw without: --set 'sample.guidance=[]'"
        )
    return conditions
