"""What do the editing tasks do? One sheet of pictures, a row a task, from a trained run.

    python benches/editing.py RUN [--out docs/editing.png]

Draws by the command line, as anyone would, for a run of recipes/quickstart.toml.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mdmkit.evaluate.grid import grid, save_image

SDE = ["--set", 'sample.rule="dpmpp_2m_sde"', "--steps", "40"]


class Sheet:
    """Rows of pictures, drawn one task after another."""

    def __init__(self, run: Path, work: Path) -> None:
        self.run, self.work = run, work
        self.rows: list[Image.Image] = []

    def sample(self, name: str, *options: str) -> list[Path]:
        """The pictures of one call at the highest level, in order."""
        out = self.work / name
        subprocess.run(
            [sys.executable, "-m", "mdmkit", "sample", str(self.run), "--out", str(out), *options],
            check=True,
            capture_output=True,
        )
        return sorted(out.glob("picture-*.png"))

    def row(self, title: str, pictures: list[tuple[Path, str]]) -> None:
        """Add a row; a caption under each picture."""
        tensors = [picture(path) for path, _ in pictures]
        made = grid(
            tensors, [caption for _, caption in pictures], columns=len(pictures), title=title, scale=4
        )
        self.rows.append(made)

    def save(self, path: Path) -> None:
        """All rows under each other."""
        width, height = max(row.width for row in self.rows), sum(row.height for row in self.rows)
        page = Image.new("RGB", (width, height), self.rows[0].getpixel((0, 0)))
        top = 0
        for row in self.rows:
            page.paste(row, (0, top))
            top += row.height
        save_image(path, page)


def picture(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/editing.png"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sheet = Sheet(options.run, work)
        ring = "a blue ring"
        (start,) = sheet.sample("start", "--prompt", ring, "--seed", "2")
        given, side = Image.open(start), Image.open(start).width

        strengths = ("0.4", "0.6", "0.8", "1")
        drawn = [
            sheet.sample(
                f"s{s}", "--prompt", "a red ring", "--init", str(start), "--strength", s, "--seed", "5"
            )[0]
            for s in strengths
        ]
        named = [(path, f"strength {s}") for path, s in zip(drawn, strengths, strict=True)]
        sheet.row("--init, for another prompt: a red ring", [(start, ring), *named])

        mask = Image.new("L", given.size)
        mask.paste(255, (0, 0, side // 2, side))
        mask.save(work / "mask.png")
        told = ["--init", str(start), "--mask", str(work / "mask.png"), "--count", "4", *SDE]
        drawn = sheet.sample("mask", "--prompt", ring, *told)
        sheet.row("--mask: the left half is known", [(start, "given"), *((path, "") for path in drawn)])

        given.convert("RGB").resize((side // 2, side // 2), Image.Resampling.BOX).save(work / "low.png")
        drawn = sheet.sample("low", "--prompt", ring, "--low", str(work / "low.png"), "--count", "4")
        low = work / "low-shown.png"
        Image.open(work / "low.png").resize((side, side), Image.Resampling.NEAREST).save(low)
        sheet.row("--low: the level above a small picture", [(low, "given"), *((path, "") for path in drawn)])

        drawn = sheet.sample(
            "seeds", "--prompt", "a green square", "--seed", "3", "--to-seed", "8", "--count", "5"
        )
        sheet.row("--to-seed: from one picture to another", [(path, "") for path in drawn])
        drawn = sheet.sample(
            "prompts", "--prompt", "a red circle", "--to-prompt", "a blue square", "--count", "5"
        )
        sheet.row("--to-prompt: from a red circle to a blue square", [(path, "") for path in drawn])

        wide = Image.new("RGB", (2 * side, side))
        wide.paste(given, (0, 0))
        wide.save(work / "wide.png")
        keep = Image.new("L", wide.size)
        keep.paste(255, (0, 0, side, side))
        keep.save(work / "keep.png")
        room = ["--canvas", f"{side}x{2 * side}", *SDE]
        around = ["--init", str(work / "wide.png"), "--mask", str(work / "keep.png"), "--count", "2", *room]
        drawn = sheet.sample("canvas", "--prompt", ring, "--count", "1", *room)
        drawn += sheet.sample("out", "--prompt", ring, *around)
        captions = ["--canvas alone", "the left half given", "the left half given"]
        sheet.row(
            "--canvas: twice as wide as trained, and outpainting", list(zip(drawn, captions, strict=True))
        )
        sheet.save(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
