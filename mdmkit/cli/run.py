"""`mdmkit run`: train by a recipe, then draw, measure and report."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from mdmkit.errors import MdmkitError, WrongInput

from .options import AllowPipe, Plugins, Sets, open_registry
from .run_resume import checkpoint_of, resumed_recipe, run_facts, start_of
from .run_told import Told

if TYPE_CHECKING:
    import torch

    from mdmkit.plugins import Registry
    from mdmkit.recipe.schema import Recipe
    from mdmkit.start import Start
    from mdmkit.train.loop import Parts
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
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe file, or plugin:name.")
    ] = None,
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
            raise WrongInput(
                "run: --out and --resume exclude each other; a resumed run goes on in its own folder"
            )
        modules = list(dict.fromkeys([*run_facts(resume).get("plugins_by_module", []), *plugins]))
        registry = open_registry(modules)
        parsed = resumed_recipe(resume, sets, registry, allow_pipe=allow_pipe)
        execute(parsed, dumps(parsed), "", resume, registry, resumed=True, sets=sets)
        return
    assert recipe is not None
    registry = open_registry(plugins)
    path = find(recipe, registry)
    parsed = load(path, sets, registry, allow_pipe=allow_pipe)
    folder = out or free_name(Path("runs"), path.stem)
    execute(parsed, dumps(parsed), path.read_text(encoding="utf-8"), folder, registry, resumed=False)


def execute(
    recipe: Recipe,
    resolved: str,
    verbatim: str,
    folder: Path,
    registry: Registry,
    *,
    resumed: bool,
    sets: Sequence[str] = (),
) -> None:
    """The run itself, on this rank."""
    from mdmkit import assemble
    from mdmkit.train.folder import Lock, one_line_disk_errors, refuse_taken
    from mdmkit.train.loop import trained_parameters
    from mdmkit.train.memory import keep_large_buffers, one_line_memory_errors
    from mdmkit.train.parallel import pick_device, world
    from mdmkit.train.signals import terminate_as_interrupt

    device = pick_device(recipe.run.device)
    keep_large_buffers()
    if recipe.run.threads is not None:
        import torch

        torch.set_num_threads(recipe.run.threads)
    with (
        terminate_as_interrupt(),
        one_line_disk_errors(folder),
        one_line_memory_errors(),
        world(device) as ranks,
    ):
        lock = None
        try:
            if ranks.is_main and resumed:
                lock = Lock(folder)
            elif ranks.is_main:
                refuse_taken(folder)
            ranks.barrier()
            refuse_too_large(recipe, registry, device=device, ranks=ranks)
            start = start_of(recipe, folder, registry, resumed=resumed)
            assemble.check_guidance(recipe, registry)  # not after hours of training
            parts = assemble.parts(recipe, registry, device=device)
            if start is not None:
                start.copy_into(trained_parameters(parts.nest, parts.text))
            # a run that cannot be put together leaves no folder behind
            if ranks.is_main:
                prepare(resolved, verbatim, folder, registry, start, resumed=resumed, device=device)
                lock = lock or Lock(folder)
            ranks.barrier()
            work(
                recipe,
                resolved,
                folder,
                registry,
                parts,
                start,
                device=device,
                ranks=ranks,
                resumed=resumed,
                sets=sets,
            )
        finally:
            if lock is not None:
                lock.release()


def refuse_too_large(recipe: Recipe, registry: Registry, *, device: torch.device, ranks: World) -> None:
    """Refuse a batch that does not split over the ranks, and a training that cannot fit into this machine."""
    from mdmkit import assemble
    from mdmkit.resolutions import some_steps
    from mdmkit.train.loop import reached_rows
    from mdmkit.train.memory import check_fits, training_memory

    plan = assemble.plan(recipe)
    told = {
        "resolution_sampler": assemble.resolution_sampler(recipe, registry),
        "growth": assemble.growth(recipe, registry),
        "ranks": ranks.size,
    }
    by_step = [reached_rows(plan, step, **told) for step in some_steps(plan.steps)]
    # the step that takes most: levels that a step does not reach take no rows
    rows = tuple(map(max, itertools.zip_longest(*by_step, fillvalue=0)))
    parts = ranks.size * plan.accumulate
    here = tuple(count // parts for count in rows)
    tokens = (getattr(recipe.text.settings, "max_tokens", None) or 1) if recipe.text else 0
    model, activations = training_memory(
        assemble.nest(recipe, registry, device="meta"),
        assemble.resolutions(recipe),
        here,
        tokens=tokens,
        cond_dim=assemble.cond_dim(recipe),
    )
    check_fits(model, activations, device=device, bf16=plan.precision == "bf16", pictures=here[0])


def prepare(
    resolved: str,
    verbatim: str,
    folder: Path,
    registry: Registry,
    start: Start | None,
    *,
    resumed: bool,
    device: torch.device,
) -> None:
    """Make the run folder; of one that is there, say by which recipe it goes on."""
    import platform

    import tomli_w
    import torch

    import mdmkit
    from mdmkit.train.folder import RECIPE, RESOLVED, RUN, create

    if resumed:
        (folder / RESOLVED).write_text(resolved, encoding="utf-8")
        return
    python = platform.python_version()
    facts = {
        "command": shlex.join(["mdmkit", *sys.argv[1:]]),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "versions": {"mdmkit": mdmkit.__version__, "torch": torch.__version__, "python": python},
        "plugins": {plugin.name: plugin.version or "-" for plugin in registry.plugins},
        "plugins_by_module": list(registry.extra_modules),
    }
    if start is not None:
        digest = {f"{start.weights}.safetensors": f"sha256:{start.digest()}"}
        facts["start"] = {"folder": str(start.folder.absolute()), "weights": digest}
    create(folder, {RECIPE: verbatim, RESOLVED: resolved, RUN: tomli_w.dumps(facts)})


def work(
    recipe: Recipe,
    resolved: str,
    folder: Path,
    registry: Registry,
    parts: Parts,
    start: Start | None = None,
    *,
    device: torch.device,
    ranks: World,
    resumed: bool,
    sets: Sequence[str],
) -> None:
    """Train, draw, measure, report; hooks see it begin and end."""
    import torch

    from mdmkit import assemble
    from mdmkit.train.folder import RESOLVED, RUN
    from mdmkit.train.logs import JSONLines, cut_back
    from mdmkit.train.loop import train

    from .run_pictures import draws, grids, measure, reads_prompts, said, save_metrics

    plan = assemble.plan(recipe)
    info = RunInfo(folder=folder, recipe=recipe, seed=recipe.run.seed)
    checkpoint = checkpoint_of(folder, recipe, registry, talk=ranks.is_main) if resumed else None
    told = Told(checkpoint.step if checkpoint else 0)
    error: BaseException | None = None
    try:
        if ranks.is_main:
            if resumed:
                cut_back(folder / "log.jsonl", told.step)
            told.loggers.append(JSONLines(folder))
            told.loggers += assemble.loggers(recipe, registry, run_dir=folder)
            if resumed:
                name = checkpoint.path.name if checkpoint else None
                told.event(
                    told.step, "resumed", {"checkpoint": name, "set": list(sets), "torch": torch.__version__}
                )
            if start is not None:
                told.event(0, "started_from", start.facts())
                told.note(str(start))
            if parts.by_size is not None:
                told.event(told.step, "pictures_by_size", parts.by_size.facts())
                told.note(str(parts.by_size))
            told.padding(recipe, parts.nest)
            registry.hook.mdmkit_run_start(run=info)

        def on_step(step: int, metrics: dict[str, Any]) -> None:
            told.step = step
            registry.hook.mdmkit_step_end(run=info, step=step, metrics=metrics)

        def on_sample(step: int, ema: Any) -> None:
            if ranks.is_main:
                with ema.swap():
                    grids(recipe, registry, parts, folder, step, told, device)
            ranks.barrier()

        with told.progress(plan.steps) if ranks.is_main else contextlib.nullcontext():
            ema = train(
                parts,
                plan,
                device=device,
                world=ranks,
                run_dir=folder,
                resume=checkpoint,
                texts={RESOLVED: resolved, RUN: (folder / RUN).read_text(encoding="utf-8")},
                on_log=told.log,
                on_event=told.event,
                on_step=on_step,
                on_sample=on_sample,
                sample_every=recipe.train.sample_every,
                before_checkpoint=told.sync,
                on_checkpoint=lambda step, path: registry.hook.mdmkit_checkpoint_saved(
                    run=info, step=step, path=path
                ),
            )
        if ranks.is_main:
            from mdmkit.evaluate.report import write_report

            with ema.swap():
                grids(recipe, registry, parts, folder, plan.steps, told, device)
                metrics = assemble.metrics(recipe, registry, device=device)
                if not reads_prompts(parts.text):  # nothing can be drawn, as the log says
                    metrics = {name: metric for name, metric in metrics.items() if not draws(metric)}
                if metrics:
                    results = measure(
                        recipe, registry, metrics, parts.nest, parts.text, parts.dataset, device
                    )
                    save_metrics(folder / "metrics.json", results)
                    print(said(results), file=sys.stderr)
            told.event(plan.steps, "finished", {})
            write_report(folder)
            print(folder / "report.html")
        ranks.barrier()
    except BaseException as caught:
        error = caught
        with contextlib.suppress(OSError, ValueError):  # the log may be what failed
            if isinstance(caught, KeyboardInterrupt):
                told.event(told.step, "interrupted", {"saved": False})
            elif getattr(caught, "exit_code", 1) != 130:
                cause = (
                    str(caught) if isinstance(caught, MdmkitError) else f"{type(caught).__name__}: {caught}"
                )
                told.event(told.step, "failed", {"cause": cause})
        raise
    finally:
        if ranks.is_main:
            registry.hook.mdmkit_run_end(run=info, error=error)
        told.close()
