"""What a run says while it trains."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from mdmkit.plugins import Registry
    from mdmkit.recipe.schema import Recipe
    from mdmkit.train.logs import Progress

    from .run_stages import StageRun

__all__ = ["Told"]


class Told:
    """What a run says while it trains: to its loggers, and to who looks on."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.loggers: list[Any] = []
        self.bar: Progress | None = None
        self.said: set[str] = set()

    @contextlib.contextmanager
    def progress(self, steps: int) -> Iterator[None]:
        """Show how far the training is."""
        from mdmkit.train.logs import Progress

        self.bar = Progress(steps, start_step=self.step)
        try:
            yield
        finally:
            self.bar.close()
            self.bar = None

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger.log(step, metrics)
        if self.bar is not None:
            self.bar.log(step, metrics)
        if metrics["truncated"]:
            self.once(
                "truncated",
                f"{metrics['truncated']} captions were cut to text.max_tokens so far; see log.jsonl",
            )

    def event(self, step: int, event: str, facts: dict[str, Any]) -> None:
        if not self.loggers:
            return
        self.loggers[0].event(step, event, **facts)
        if event == "skipped_sample":
            self.once(event, f"{facts['key']} is skipped: {facts['cause']}; all such are in log.jsonl")
        elif event == "bad_step":
            self.note(
                f"step {step} is skipped: its loss or gradient is not finite ({facts['in_row']} in a row)"
            )

    def sizes(self, stage: StageRun) -> None:
        """Say how many pictures reach which level, where rows stop at the size of their picture."""
        found = stage.parts.by_size
        if found is not None:
            self.event(max(self.step, stage.plan.phase.first), "pictures_by_size", found.facts())
            self.note(str(found))

    def grown(self, folder: Path, stage: StageRun) -> None:
        """Say that the network has grown; once, though a run that is resumed there grows again."""
        from mdmkit.train.logs import LOG_NAME, read_log

        phase = stage.plan.phase
        sides = [" x ".join(map(str, size)) for size in stage.parts.resolutions]
        facts = {"stage": phase.index, "levels": len(sides), "new_parameters": len(phase.new)}
        self.note(f"step {phase.first}: stage {phase.index} begins, levels at {', '.join(sides)}")
        log = read_log(folder / LOG_NAME)
        if not any(entry.get("event") == "grown" and entry["step"] == phase.first for entry in log):
            self.event(phase.first, "grown", facts)
            self.sizes(stage)

    def padding(self, recipe: Recipe, nest: Any) -> None:
        """Say where captions are padded to their batch and the network looks at that."""
        pad = getattr(recipe.text.settings, "pad", "max") if recipe.text else "max"
        if getattr(nest, "sees_padding", False) and pad != "max":
            self.note(
                f'text.pad = "{pad}" pads to the longest caption of a micro-batch, and the network looks at '
                'padding: numbers depend on ranks and train.accumulate; with text.pad = "max" they do not'
            )

    def stills(self, recipe: Recipe, registry: Registry) -> None:
        """Say where a model of clips is shown nothing that moves."""
        from mdmkit.assemble import draws_clips

        if draws_clips(recipe) and not registry.takes(recipe.data.source, "frames", kind="dataset"):
            self.note(
                f"data.use = '{recipe.data.source.name}' has only pictures, and the model draws clips: it "
                "learns nothing of motion; give clips, and these as data.pictures with a data.picture_share"
            )

    def once(self, what: str, line: str) -> None:
        """Say a line, the first time that this happens."""
        if self.loggers and what not in self.said:
            self.said.add(what)
            self.note(line)

    def note(self, line: str) -> None:
        """Say a line."""
        if self.bar is not None:
            self.bar.note(line)
        else:
            print(line, file=sys.stderr)

    def sync(self) -> None:
        self.loggers[0].sync()

    def close(self) -> None:
        for logger in self.loggers:
            with contextlib.suppress(OSError):  # a full disk has been said already
                logger.close()
