"""`mdmkit run`: train by a recipe, then draw, measure and report."""

from __future__ import annotations

import contextlib
import datetime
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
from .run_stages import (
    StageRun,
    ask_to_grow,
    fork,
    grown,
    refuse_too_large,
    refuse_unreached,
    stage_run,
    total_steps,
    train_stage,
)
from .run_told import Told

if TYPE_CHECKING:
    import torch

    from mdmkit.plugins import Registry
    from mdmkit.recipe.schema import Recipe
    from mdmkit.start import Start
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
    grow_now: Annotated[
        bool, typer.Option("--grow-now", help="With --resume: end the stage of growth at its next step.")
    ] = False,
    from_stage: Annotated[
        int | None,
        typer.Option(help="With --resume and --out: a run of its own that goes on from the end of a stage."),
    ] = None,
    allow_pipe: AllowPipe = False,
) -> None:
    """Train by a recipe (growing by its stages), then sample, measure and report."""
    from mdmkit.recipe import dumps, load
    from mdmkit.recipe.load import find
    from mdmkit.train.folder import free_name, in_use

    if allow_pipe:
        os.environ["MDMKIT_ALLOW_PIPE"] = "1"  # data workers are other processes
    if (recipe is None) == (resume is None):
        raise WrongInput("run: expected a recipe, or --resume with a run folder (one of the two)")
    if resume is None and (grow_now or from_stage is not None):
        raise WrongInput("run: --grow-now and --from-stage are for a run that is there; name it by --resume")
    if resume is not None:
        if out is None and from_stage is not None:
            raise WrongInput("run: --from-stage makes a run of its own; name its folder by --out")
        if out is not None and from_stage is None:
            raise WrongInput(
                "run: --out and --resume exclude each other; a resumed run goes on in its own folder, "
                "or with --from-stage in another"
            )
        modules = list(dict.fromkeys([*run_facts(resume).get("plugins_by_module", []), *plugins]))
        registry = open_registry(modules)
        parsed = resumed_recipe(resume, sets, registry, allow_pipe=allow_pipe, fixed_model=from_stage is None)
        first = os.environ.get("RANK", "0") == "0"  # of several processes one does what is done to folders
        if out is not None and from_stage is not None:
            if first:
                fork(resume, from_stage, out, parsed, registry)
            resume = out
        if grow_now and first:
            ask_to_grow(resume, parsed, registry)
            if in_use(resume):
                print(f"the process that trains {resume} ends its stage at its next step", file=sys.stderr)
                return
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
    from mdmkit.recipe.stages import stage_recipe
    from mdmkit.train.folder import Lock, one_line_disk_errors, refuse_taken
    from mdmkit.train.memory import keep_large_buffers, one_line_memory_errors
    from mdmkit.train.parallel import pick_device, world
    from mdmkit.train.plan import trained_parameters
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
            refuse_too_large(recipe, registry, device=device, ranks=ranks.size)
            start = start_of(stage_recipe(recipe, registry, 0), folder, registry, resumed=resumed)
            checkpoint = checkpoint_of(folder, recipe, registry, talk=ranks.is_main) if resumed else None
            assemble.check_guidance(recipe, registry)  # not after hours of training
            assemble.metrics(recipe, registry)  # nor that a file of theirs is missing
            stage = stage_run(recipe, registry, checkpoint, device=device)
            refuse_unreached(recipe, registry)
            if start is not None:
                start.copy_into(trained_parameters(stage.parts.nest, stage.parts.text))
            # a run that cannot be put together leaves no folder behind
            if ranks.is_main:
                prepare(resolved, verbatim, folder, registry, start, resumed=resumed, device=device)
                lock = lock or Lock(folder)
            ranks.barrier()
            work(
                recipe,
                folder,
                registry,
                stage,
                start,
                device=device,
                ranks=ranks,
                resumed=resumed,
                sets=sets,
            )
        finally:
            if lock is not None:
                lock.release()


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
    folder: Path,
    registry: Registry,
    stage: StageRun,
    start: Start | None = None,
    *,
    device: torch.device,
    ranks: World,
    resumed: bool,
    sets: Sequence[str],
) -> None:
    """Train stage by stage, draw, measure, report; hooks see it begin and end."""
    import torch

    from mdmkit import assemble, cascade
    from mdmkit.train.logs import JSONLines, cut_back

    from .run_pictures import draws, grids, lacks_inner, measure, reads_prompts, said, save_metrics

    info = RunInfo(folder=folder, recipe=recipe, seed=recipe.run.seed)
    checkpoint = stage.resume
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
            told.sizes(stage)
            told.padding(recipe, stage.parts.nest)
            told.stills(recipe, registry)
            registry.hook.mdmkit_run_start(run=info)

        total = total_steps(recipe, registry)
        with told.progress(total) if ranks.is_main else contextlib.nullcontext():
            ema = train_stage(stage, folder, registry, info, told, device=device, ranks=ranks)
            while not stage.plan.phase.last:
                if ranks.is_main:
                    with ema.swap():
                        grids(
                            stage.recipe, registry, stage.parts, folder, told.step, told, device,
                            stage=stage.index,
                        )  # fmt: skip
                ranks.barrier()
                del stage, ema  # the next stage is a network of its own
                stage = grown(recipe, registry, folder, device=device)
                if ranks.is_main:
                    told.grown(folder, stage)
                    for level in stage.plan.phase.new_levels:
                        registry.hook.mdmkit_level_grown(run=info, level=level)
                ema = train_stage(stage, folder, registry, info, told, device=device, ranks=ranks)
        if ranks.is_main:
            from mdmkit.evaluate.report import write_report

            parts, index = stage.parts, stage.index
            # the whole recipe, as the model of the last stage has it: it may be given levels
            recipe = attrs.evolve(recipe, diffusion=stage.recipe.diffusion)
            with ema.swap():
                grids(recipe, registry, parts, folder, told.step, told, device, stage=index)
                metrics = assemble.metrics(recipe, registry, device=device)
                if not reads_prompts(parts.text) or lacks_inner(recipe, index):  # as the log says
                    metrics = {name: metric for name, metric in metrics.items() if not draws(metric)}
                if metrics:
                    checkpoints = folder / "checkpoints"
                    inner = (
                        cascade.before(checkpoints, index, recipe, registry, device=device, text=parts.text)
                        if any(map(draws, metrics.values()))
                        else []
                    )
                    results = measure(
                        recipe, registry, metrics, parts.nest, parts.text, parts.dataset, device, inner=inner
                    )
                    save_metrics(folder / "metrics.json", results)
                    print(said(results), file=sys.stderr)
            told.event(told.step, "finished", {})
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
