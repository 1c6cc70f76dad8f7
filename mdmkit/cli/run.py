"""`mdmkit run`: train by a recipe, then draw, measure and report."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from mdmkit.errors import MdmkitError, WrongInput

from .options import AllowPipe, Plugins, Sets, open_registry

if TYPE_CHECKING:
    import torch

    from mdmkit.plugins import Registry
    from mdmkit.recipe.schema import Recipe
    from mdmkit.train.parallel import World

__all__ = ["RunInfo", "command"]


@attrs.frozen
class RunInfo:
    """A run as hooks see it."""

    folder: Path
    recipe: Any
    seed: int


def command(
    sets: Sets,
    plugins: Plugins,
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe file, or plugin:name.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/<recipe> where not given.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    allow_pipe: AllowPipe = False,
) -> None:
    """Train by a recipe (growing by its stages), then sample, measure and report."""
    from mdmkit.recipe import dumps, load
    from mdmkit.recipe.load import find
    from mdmkit.train.folder import free_name

    if allow_pipe:
        os.environ["MDMKIT_ALLOW_PIPE"] = "1"  # data workers are other processes
    if (recipe is None) == (resume is None):
        raise WrongInput("run: expected a recipe, or --resume with a run folder (one of the two)")
    if resume is not None:
        if out is not None:
            raise WrongInput("run: --out and --resume exclude each other; a resumed run goes on in its own folder")
        modules = list(dict.fromkeys([*run_facts(resume).get("plugins_by_module", []), *plugins]))
        registry = open_registry(modules)
        parsed = resumed_recipe(resume, sets, registry, allow_pipe=allow_pipe)
        execute(parsed, dumps(parsed), "", resume, registry, resumed=True)
        return
    assert recipe is not None
    registry = open_registry(plugins)
    path = find(recipe, registry)
    parsed = load(path, sets, registry, allow_pipe=allow_pipe)
    folder = out or free_name(Path("runs"), path.stem)
    execute(parsed, dumps(parsed), path.read_text(encoding="utf-8"), folder, registry, resumed=False)


def run_facts(folder: Path) -> dict[str, Any]:
    """What run.toml says, or a clear refusal where there is no run."""
    import tomli

    from mdmkit.train.folder import RESOLVED, RUN

    if not (folder / RESOLVED).is_file():
        raise WrongInput(f"{folder} holds no run ({RESOLVED} is missing); start one with: mdmkit run RECIPE --out {folder}")
    return tomli.loads((folder / RUN).read_text(encoding="utf-8")) if (folder / RUN).is_file() else {}


def resumed_recipe(folder: Path, sets: Sequence[str], registry: Registry, *, allow_pipe: bool) -> Recipe:
    """The run's own resolved recipe with overrides; what they change in `model` would not fit its weights."""
    from mdmkit.recipe import load
    from mdmkit.train.folder import RESOLVED

    before = load(folder / RESOLVED, [], registry, allow_pipe=allow_pipe)
    now = load(folder / RESOLVED, sets, registry, allow_pipe=allow_pipe)
    fixed = [name for name in ("model", "text", "data") if getattr(before, name) != getattr(now, name)]
    if "data" in fixed and before.data.source == now.data.source:
        fixed.remove("data")  # workers and the like change no number
    if fixed:
        raise WrongInput(
            f"--set changes [{fixed[0]}], which the checkpoints in {folder} were made with; "
            "start a new run with another --out instead"
        )
    return now


def execute(
    recipe: Recipe, resolved: str, verbatim: str, folder: Path, registry: Registry, *, resumed: bool
) -> None:
    """The run itself, on this rank."""
    from mdmkit.train.parallel import keep_large_buffers, one_line_memory_errors, pick_device, world

    keep_large_buffers()
    device = pick_device(recipe.run.device)
    if recipe.run.threads is not None:
        import torch

        torch.set_num_threads(recipe.run.threads)
    with world(device) as ranks, one_line_memory_errors():
        if ranks.is_main:
            prepare(recipe, resolved, verbatim, folder, registry, resumed=resumed, device=device)
        ranks.barrier()
        work(recipe, resolved, folder, registry, device=device, ranks=ranks, resumed=resumed)


def prepare(
    recipe: Recipe, resolved: str, verbatim: str, folder: Path, registry: Registry, *,
    resumed: bool, device: torch.device,
) -> None:
    """Make the run folder, before anything that takes time."""
    import tomli_w
    import torch

    import mdmkit
    from mdmkit.train.folder import RECIPE, RESOLVED, RUN, create

    if resumed:
        (folder / RESOLVED).write_text(resolved, encoding="utf-8")
        return
    facts = {
        "command": shlex.join(["mdmkit", *sys.argv[1:]]),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "versions": {"mdmkit": mdmkit.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "plugins": {plugin.name: plugin.version or "-" for plugin in registry.plugins},
        "plugins_by_module": list(registry.extra_modules),
    }
    create(folder, {RECIPE: verbatim, RESOLVED: resolved, RUN: tomli_w.dumps(facts)})


def work(
    recipe: Recipe, resolved: str, folder: Path, registry: Registry, *, device: torch.device, ranks: World, resumed: bool
) -> None:
    """Build the parts, train, draw, measure, report; hooks see it begin and end."""
    from mdmkit import assemble
    from mdmkit.train.folder import RESOLVED, Lock
    from mdmkit.train.logs import JSONLines, Progress, cut_back
    from mdmkit.train.loop import train
    from mdmkit.train.state import damaged, latest
    from mdmkit.train.state import load as load_checkpoint

    lock = Lock(folder) if ranks.is_main else None
    info = RunInfo(folder=folder, recipe=recipe, seed=recipe.run.seed)
    loggers: list[Any] = []
    error: BaseException | None = None
    try:
        found = latest(folder / "checkpoints") if resumed else None
        checkpoint = load_checkpoint(found) if found else None
        if ranks.is_main and resumed:
            for path, why in damaged(folder / "checkpoints"):
                print(f"{path} is passed over: {why}", file=sys.stderr)
        parts = assemble.parts(recipe, registry, device=device)
        plan = assemble.plan(recipe)
        start = checkpoint.step if checkpoint else 0
        if ranks.is_main:
            if resumed:
                cut_back(folder / "log.jsonl", start)
            loggers = [JSONLines(folder), *assemble.loggers(recipe, registry, run_dir=folder)]
            if resumed:
                loggers[0].event(start, "resumed", checkpoint=found.name if found else None)
            registry.hook.mdmkit_run_start(run=info)
        ranks.barrier()
        progress = Progress(plan.steps, start_step=start) if ranks.is_main else None

        def on_log(step: int, metrics: dict[str, Any]) -> None:
            for logger in loggers:
                logger.log(step, metrics)
            if progress is not None:
                progress.log(step, metrics)

        def on_event(step: int, event: str, facts: dict[str, Any]) -> None:
            if loggers:
                loggers[0].event(step, event, **facts)

        def on_sample(step: int, ema: Any) -> None:
            if ranks.is_main:
                with ema.swap():
                    grids(recipe, registry, parts, folder, step, loggers, device)
            ranks.barrier()

        try:
            ema = train(
                parts, plan, device=device, world=ranks, run_dir=folder, resume=checkpoint, texts={RESOLVED: resolved},
                on_log=on_log, on_event=on_event, on_sample=on_sample, sample_every=recipe.train.sample_every,
                on_step=lambda step, metrics: registry.hook.mdmkit_step_end(run=info, step=step, metrics=metrics),
                before_checkpoint=lambda: loggers[0].sync(),
                on_checkpoint=lambda step, path: registry.hook.mdmkit_checkpoint_saved(run=info, step=step, path=path),
            )
        finally:
            if progress is not None:
                progress.close()
        if ranks.is_main:
            from mdmkit.evaluate.report import write_report

            with ema.swap():
                grids(recipe, registry, parts, folder, plan.steps, loggers, device)
                measure(recipe, registry, parts, folder, device)
            on_event(plan.steps, "finished", {})
            write_report(folder)
            print(folder / "report.html")
        ranks.barrier()
    except BaseException as caught:
        error = caught
        if loggers and not isinstance(caught, MdmkitError):
            loggers[0].event(-1, "failed", cause=f"{type(caught).__name__}: {caught}")
        raise
    finally:
        if ranks.is_main:
            registry.hook.mdmkit_run_end(run=info, error=error)
        for logger in loggers:
            logger.close()
        if lock is not None:
            lock.release()


def grids(
    recipe: Recipe, registry: Registry, parts: Any, folder: Path, step: int, loggers: list[Any], device: torch.device
) -> None:
    """Draw the recipe's prompts with the weights as they are now: one labelled grid a level."""
    from mdmkit import assemble
    from mdmkit.evaluate.grid import grid, grid_path
    from mdmkit.sampling.draw import draw

    captions = list(recipe.sample.prompts) or captions_of(parts.dataset, recipe.sample.count)
    pyramids = draw(
        parts.nest, parts.text, parts.objective.diffusion, assemble.drawing(recipe, registry),
        resolutions=parts.resolutions, captions=captions, seed=recipe.sample.seed, batch=recipe.sample.batch,
        device=device,
    )
    for level, (height, width) in enumerate(parts.resolutions):
        path = grid_path(folder, step=step, level=level)
        picture = grid([pyramid[level].cpu() for pyramid in pyramids], captions)
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
        for logger in loggers:
            logger.images(step, f"level {level} ({height} x {width})", picture)


def measure(recipe: Recipe, registry: Registry, parts: Any, folder: Path, device: torch.device) -> None:
    """The recipe's metrics, over pictures drawn for captions of their own; written to metrics.json."""
    from mdmkit import assemble
    from mdmkit.sampling.draw import draw

    metrics = assemble.metrics(recipe, registry, device=device)
    if not metrics:
        return
    captions = captions_of(parts.dataset, recipe.evaluate.count)
    results: dict[str, Any] = {}
    pyramids = draw(
        parts.nest, parts.text, parts.objective.diffusion, assemble.drawing(recipe, registry),
        resolutions=parts.resolutions, captions=captions, seed=recipe.sample.seed + 1_000_000,
        batch=max(recipe.sample.batch, 64), device=device,
    )
    import torch

    top = torch.stack([pyramid[-1] for pyramid in pyramids])
    for name, metric in metrics.items():
        metric.update(top, captions)
        results |= {f"{name}.{key}": value for key, value in metric.result().items()}
    (folder / "metrics.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    for key, value in results.items():
        print(f"{key:40} {value:.4f}", file=sys.stderr)


def captions_of(dataset: Any, count: int) -> list[str]:
    """Captions to draw for: those that the dataset names, else those of its first samples."""
    if hasattr(dataset, "captions"):
        return list(dataset.captions(count))
    return [dataset.sample(position).caption for position in range(count)]
