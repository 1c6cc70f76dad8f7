"""The report: one page from whatever a run folder holds; it loads nothing and takes no text for HTML."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from mdmkit.evaluate.curves import _extremes, _smooth, _thin, curve
from mdmkit.evaluate.grid import grid_path, save_grid
from mdmkit.evaluate.report import write_report
from mdmkit.train.logs import JSONLines

RECIPE = """
format = 1
summary = "shapes <16 & 32>"
[run]
seed = 7
[train]
steps = 400
batch = 32
[[model.levels]]
resolution = 16
use = "unet@1"
channels = [8, 16]
[[model.levels]]
resolution = [32, 48]
use = "unet@1"
channels = [8]
"""


class Page(HTMLParser):
    """Reads the page as a browser does, and fails on a tag that is not closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open, self.tags, self.links = "", [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset") and v]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def report(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    assert not list(folder.glob("*.tmp"))
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    # fragments of the page itself and data in it: nothing else is ever fetched
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert not re.search(r"@import|<script|<link|<iframe|url\((?!#)", text)
    return page


def whole_run(folder: Path) -> None:
    (folder / "run.toml").write_text(
        'command = "mdmkit run <script>alert(1)</script>"\n'
        'start = 2026-01-02T03:04:05+00:00\ndevice = "cpu"\n'
        '[versions]\nmdmkit = "0.1.0"\ntorch = "2.13.0"\n'
    )
    (folder / "recipe.resolved.toml").write_text(RECIPE)
    log = JSONLines(folder)
    for step in range(10, 401, 10):
        loss = float("nan") if step == 200 else 10 / step
        log.log(step, {"loss": loss + 0.1, "loss.0": loss, "loss.1": 0.1, "lr": 1e-3, "grad_norm": 0.5,
                       "seconds": 0.25, "pictures_per_second": 128.0, "pictures": 32 * step,
                       "skipped": 3})  # fmt: skip
    log.event(200, "bad_step", loss=float("nan"))
    log.event(300, "resumed", checkpoint="checkpoints/step-0000300")
    log.event(400, "sampled", seconds=61.0)
    log.event(400, "finished")
    log.close()
    for step in (100, 200, 400):
        for level in (0, 1):
            save_grid(grid_path(folder, step=step, level=level), [torch.zeros(3, 4, 6)] * 2, ["red", "blue"])
    (folder / "metrics.json").write_text(json.dumps({"prompt_accuracy": {"colour": 0.9375, "n": 256}}))


def test_a_whole_run_is_all_on_the_page(tmp_path: Path) -> None:
    whole_run(tmp_path)
    page = report(tmp_path)
    for text in (
        "shapes <16 & 32>", "finished", "400 of 400", "12\u202f800", "0.25", "128", "1:40",
        "2026-01-02 03:04 UTC",
        "cpu", "0.1.0", "2.13.0", "7", "level 0, 16 × 16", "level 1, 32 × 48", "step 100", "step 400",
        "prompt_accuracy.colour", "0.9375", "1:01, 1 time", "checkpoint checkpoints/step-0000300", "8, 16",
        "mdmkit run <script>alert(1)</script>", "learning rate", "gradient norm", "pictures a second",
    ):  # fmt: skip
        assert text in page.text, text
    assert RECIPE.strip() in page.text.replace("\n\n", "\n")
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", (tmp_path / "report.html").read_text()))
    assert tuple(facts[name] for name in ("resumed", "bad steps", "skipped samples")) == ("1", "1", "3")
    assert page.tags.count("svg") == 4
    assert page.tags.count("img") == 6


def test_pictures_on_the_page_are_those_of_the_run(tmp_path: Path) -> None:
    # by number, not by name: steps outgrow the zeros in front of them
    latest = save_grid(tmp_path / "samples" / "step-20-level-0.png", [torch.zeros(3, 4, 4)], ["new"])
    old = save_grid(tmp_path / "samples" / "step-3-level-0.png", [torch.zeros(3, 4, 4)], ["old"])
    page = report(tmp_path)
    first, second = (
        base64.b64decode(link.partition(",")[2]) for link in page.links if link.startswith("data:")
    )
    assert first == latest.read_bytes()
    assert second == old.read_bytes()
    assert "step 3" in page.text


def test_a_wide_grid_is_scaled_down_and_of_many_steps_some_are_shown(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    Image.linear_gradient("L").resize((2000, 500)).save(grid_path(tmp_path, step=0, level=0))
    for step in range(1, 30):
        shutil.copy(grid_path(tmp_path, step=0, level=0), grid_path(tmp_path, step=step, level=0))
    page = report(tmp_path)
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2])))
        for link in page.links
        if "data:" in link
    ]
    assert [picture.width for picture in pictures] == [1600] + [340] * 8
    shown = re.findall(r"step (\d+)\n", page.text)
    assert (shown[0], shown[1], shown[-1]) == ("29", "0", "28")
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


@pytest.mark.parametrize("lines", ["", '{"step": 10, "loss": 0.5, "loss.0": 0.5}\n{"step": 20, "lo'])
def test_a_run_that_has_hardly_begun_has_a_report(tmp_path: Path, lines: str) -> None:
    (tmp_path / "recipe.resolved.toml").write_text(RECIPE)
    (tmp_path / "log.jsonl").write_text(lines)
    page = report(tmp_path)
    assert ("step 10 of 400" if lines else "not a step yet") in page.text
    assert "Pictures" not in page.text


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    assert "not a step yet" in report(tmp_path).text


def test_an_interrupted_run_says_so_until_it_goes_on(tmp_path: Path) -> None:
    log = JSONLines(tmp_path)
    log.log(50, {"loss": 1.0})
    log.event(50, "interrupted")
    assert "interrupted at step 50" in report(tmp_path).text
    log.event(50, "resumed")
    log.close()
    assert "interrupted at step 50" not in report(tmp_path).text


def test_what_cannot_be_read_is_named_and_the_rest_shown(tmp_path: Path) -> None:
    whole_run(tmp_path)
    (tmp_path / "run.toml").write_text("half = ")
    (tmp_path / "metrics.json").write_text("{")
    (tmp_path / "samples" / "step-0000500-level-0.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "samples" / "odd.png").write_bytes(b"")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write("torn\n{}\n")
    page = report(tmp_path)
    for text in (
        "run.toml cannot be read", "metrics.json cannot be read", "step-0000500-level-0.png cannot be read",
        "odd.png cannot be read", "log.jsonl:45: expected a JSON object", "level 1, 32 × 48",
    ):  # fmt: skip
        assert text in page.text, text


def test_without_matplotlib_a_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_run(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = report(tmp_path)
    assert "pip install 'mdmkit[report]'" in page.text
    assert "svg" not in page.tags
    assert page.tags.count("img") == 6


@pytest.mark.parametrize(
    "values", [[1.0], [float("nan")] * 3, [0.0, -1.0, 2.0], [1.0, float("inf"), 2.0], [3.0] * 5000]
)
def test_a_curve_of_any_values_is_a_small_svg_in_the_page_s_colour(values: list[float]) -> None:
    svg = curve({"loss": (list(range(len(values))), values)}, size=(4, 2), log=True, first_in_ink=True)
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert len(svg) < 120_000
    assert svg == curve(
        {"loss": (list(range(len(values))), values)}, size=(4, 2), log=True, first_in_ink=True
    )


def test_thinning_keeps_ends_and_spikes_and_smoothing_keeps_lines() -> None:
    xs, ys = list(range(50_000)), [0.0] * 50_000
    ys[31_234] = 9.0
    thin_xs, thin_ys = _extremes(xs, ys)
    assert (31_234, 9.0) in zip(thin_xs, thin_ys, strict=True)
    assert len(thin_xs) <= 1202
    picked = _thin(xs, ys)[0]
    assert (picked[0], picked[-1]) == (0, 49_999)
    assert len(picked) <= 602
    line = [2.0 * x + 1 for x in range(500)]
    assert _smooth(line) == pytest.approx(line, abs=1e-6)
