"""`mdmkit sample` of clips that begin, end or go on as given, of longer ones, of parts of them; `--micro`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdmkit import assemble, model_folder
from mdmkit.evaluate.clips import save_clip
from mdmkit.plugins import load_registry
from mdmkit.recipe import loads
from mdmkit.train.plan import trained_parameters
from tests.train import tiny

RECIPE = """
format = 1
[run]
device = "cpu"
threads = 1
[data]
use = "moving_shapes"
[text]
use = "bytes"
width = 16
layers = 1
heads = 2
[diffusion]
frame_pooling = "average"
[[model.levels]]
resolution = 4
channels = [8, 8]
blocks = 1
norm_groups = 4
heads = 2
[[model.levels]]
resolution = 4
frames = 4
channels = [8, 8, 8]
blocks = 1
norm_groups = 4
strides = [[2, 1, 1], [2, 1, 1]]
temporal = { use = "attention", head_dim = 4 }
micro_conditioning = { fps = 8, frames = 4 }
[[model.levels]]
resolution = 8
frames = 4
channels = [8, 8]
blocks = 1
norm_groups = 4
micro_conditioning = { fps = 8, aspect = 1.0 }
[train]
steps = 1
batch = 2
[sample]
steps = 2
guidance = []
"""
PICTURES = tiny.RECIPE.replace("resolution = 8\n", "resolution = 8\nmicro_conditioning = { crop = 0.5 }\n")


def written(folder: Path, text: str) -> Path:
    """A model of a recipe, with a little of everything in its weights."""
    registry = load_registry(env={"MDMKIT_PLUGINS": ""})
    recipe = loads(text, registry=registry)
    torch.manual_seed(0)
    nest, encoder = assemble.nest(recipe, registry), assemble.text_encoder(recipe, registry)
    weights = trained_parameters(nest, encoder)
    mixed = {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in weights.items()}
    model_folder.write(folder, recipe, mixed, {})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of clips: 1 x 4 x 4, 4 x 4 x 4 and 4 x 8 x 8."""
    return written(tmp_path_factory.mktemp("model") / "clips", RECIPE)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("model") / "pictures", PICTURES)


PICK = "pick"
CLIP = np.random.default_rng(0).integers(60, 200, (6, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips as folders of frames, pictures, masks, and what is none of them."""
    folder = tmp_path_factory.mktemp("files")
    for count in (1, 2, 3, 4, 6):
        save_clip(folder / f"clip{count}", CLIP[:count], fps=8, format="png")
    save_clip(folder / "six", CLIP, fps=8, format="gif")
    save_clip(folder / "fast", CLIP[:2], fps=25, format="gif")
    Image.fromarray(CLIP[0]).save(folder / "picture.png")
    Image.fromarray(CLIP[0].repeat(3, 0).repeat(3, 1)).save(folder / "large.png")
    mask = np.zeros((4, 8, 8, 3), np.uint8)
    mask[:, :, :4] = 255
    Image.fromarray(mask[0]).save(folder / "left.png")
    mask[:3] = 0
    save_clip(folder / "end-left", mask, fps=8, format="png")
    save_clip(folder / "low", 64 + CLIP[:4, :4, :4] // 2, fps=8, format="png")
    (folder / "text.png").write_text("no picture", encoding="utf-8")
    (folder / "text.mp4").write_text("no video", encoding="utf-8")
    (folder / "none").mkdir()
    return folder


def frames(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))])


def sampled(model: Path, out: Path, *given: str | Path) -> list[np.ndarray]:
    """The clips that are drawn, uint8 (F, H, W, 3)."""
    done = tiny.here("sample", model, "--prompt", "a", *given, "--clip-format", "png", "--out", out)
    assert done.code == 0, done.err
    return [frames(path) for path in sorted(out.glob("clip-*"))]


def test_given_frames_come_out_exactly(model: Path, files: Path, tmp_path: Path) -> None:
    begins, ends = ("--first-frames", files / "clip2"), ("--last-frames", files / "picture.png")
    plain = sampled(model, tmp_path / "plain")[0]
    for name, options in {"a": begins, "b": ends, "c": (*begins, *ends)}.items():
        one, other = sampled(model, tmp_path / name, *options, "--count", "2")
        for clip in (one, other):
            assert clip.shape == (4, 8, 8, 3)
            assert name == "b" or np.array_equal(clip[:2], CLIP[:2])
            assert name == "a" or np.array_equal(clip[3], CLIP[0])
        drawn = {"a": slice(2, 4), "b": slice(0, 3), "c": slice(2, 3)}[name]
        assert all((a != b).any() for a, b in zip(one[drawn], other[drawn], strict=True))
        assert (one[drawn] != plain[drawn]).any(), "the rest is drawn for what is given"
    again = sampled(model, tmp_path / "again", *begins, *ends, "--seed", "1")
    assert np.array_equal(again[0], sampled(model, tmp_path / "once", *begins, *ends, "--seed", "1")[0])
    assert np.array_equal(again[0], frames(tmp_path / "c" / "clip-00001"))
    # larger ones are made to fit, and pictures come from videos too
    large = ("--first-frames", files / "large.png")
    (clip,) = sampled(model, tmp_path / "large", *large, "--passes", "2", "--levels", "2")
    assert clip.shape == (4, 4, 4, 3)
    av = pytest.importorskip("av")
    assert av
    path = save_clip(tmp_path / "moves", CLIP[:2], fps=8, format="mp4")
    (clip,) = sampled(model, tmp_path / "video", "--first-frames", path)
    assert abs(clip[:2].astype(int) - CLIP[:2]).mean() < 40


def test_a_clip_goes_on(model: Path, files: Path, tmp_path: Path) -> None:
    for source in ("clip6", "six.gif"):
        (clip,) = sampled(model, tmp_path / source, "--continues", files / source)
        assert np.array_equal(clip[:6], CLIP)
        assert len(clip) == 6 + 4 - 2, "half of the trained frames are seen"
        # what is drawn is what begins with its last frames
        save_clip(tmp_path / f"{source}-end", CLIP[4:], fps=8, format="png")
        begins = ("--first-frames", tmp_path / f"{source}-end")
        (drawn,) = sampled(model, tmp_path / f"{source}-drawn", *begins)
        assert np.array_equal(clip[4:], drawn)
    (clip,) = sampled(model, tmp_path / "one", "--continues", files / "clip6", "--overlap", "1")
    assert len(clip) == 6 + 4 - 1
    (clip,) = sampled(model, tmp_path / "from-one", "--continues", files / "picture.png")
    assert len(clip) == 4
    long = ("--frames", "7", "--last-frames", files / "clip2")
    (clip,) = sampled(model, tmp_path / "long", "--continues", files / "clip3", "--overlap", "3", *long)
    assert len(clip) == 7
    assert np.array_equal(clip[:3], CLIP[:3])
    assert np.array_equal(clip[5:], CLIP[:2])


def test_longer_and_wider_clips_than_trained(model: Path, files: Path, tmp_path: Path) -> None:
    begins = ("--first-frames", files / "picture.png")
    (clip,) = sampled(model, tmp_path / "a", "--frames", "11", *begins, "--canvas", "8x12")
    assert clip.shape == (11, 8, 12, 3)
    assert {path.stem for path in (tmp_path / "a").glob("*.png")} == {
        "sheet-level-0-1x4x6", "sheet-level-1-11x4x6", "sheet-level-2-11x8x12"
    }  # fmt: skip
    (clip,) = sampled(model, tmp_path / "long", "--frames", "5", *begins)
    assert np.array_equal(clip[0], CLIP[0])
    (same,) = sampled(model, tmp_path / "same", "--frames", "4", "--canvas", "8x8")
    assert np.array_equal(same, sampled(model, tmp_path / "plain")[0])
    (same,) = sampled(
        model, tmp_path / "held", "--frames", "9", "--init", files / "picture.png", "--strength", "0"
    )
    assert np.array_equal(same, CLIP[:1].repeat(9, 0))


def test_models_of_clips_draw_pictures(model: Path, files: Path, tmp_path: Path) -> None:
    one = ("--frames", "1", "--prompt", "a", "--init", files / "picture.png", "--strength")
    for name, more in {"same": ("0",), "wide": ("0.5", "--canvas", "8x12")}.items():
        done = tiny.here("sample", model, *one, *more, "--out", tmp_path / name)
        assert (done.code, done.err) == (0, f"1 pictures in {tmp_path / name}\n")
    assert {path.name for path in (tmp_path / "wide").iterdir()} == {
        "sheet-level-0-1x4x6.png", "sheet-level-1-1x4x6.png", "sheet-level-2-1x8x12.png",
        "picture-00000.png",
    }  # fmt: skip
    with Image.open(tmp_path / "same" / "picture-00000.png") as picture:
        assert np.array_equal(np.asarray(picture), CLIP[0])


def test_variations_and_parts_of_a_clip(model: Path, files: Path, tmp_path: Path) -> None:
    init = ("--init", files / "clip4")
    (same,) = sampled(model, tmp_path / "same", *init, "--strength", "0")
    assert np.array_equal(same, CLIP[:4])
    (near,) = sampled(model, tmp_path / "near", *init, "--strength", "0.1")
    (far,) = sampled(model, tmp_path / "far", *init)
    assert 0 < abs(near.astype(int) - CLIP[:4]).mean() < abs(far.astype(int) - CLIP[:4]).mean()
    (other,) = sampled(model, tmp_path / "other", *init, "--strength", "1")
    assert np.array_equal(other, sampled(model, tmp_path / "plain")[0])
    (kept,) = sampled(model, tmp_path / "left", *init, "--mask", files / "left.png")
    assert np.array_equal(kept[:, :, :4], CLIP[:4, :, :4])
    strength = ("--mask", files / "left.png", "--strength", "1")
    assert np.array_equal(kept, sampled(model, tmp_path / "anew", *init, *strength)[0])
    assert not np.array_equal(kept[:, :, 4:], CLIP[:4, :, 4:])
    begins = ("--first-frames", files / "clip2")
    (kept,) = sampled(model, tmp_path / "end", *init, "--mask", files / "end-left", *begins)
    assert np.array_equal(kept[:2], CLIP[:2])
    assert np.array_equal(kept[3, :, :4], CLIP[3, :, :4])
    assert not np.array_equal(kept[2, :, :4], CLIP[2, :, :4])


def test_levels_above_a_low_clip(model: Path, files: Path, tmp_path: Path) -> None:
    shown = frames(files / "low")
    for low, given, times in (("low", shown, 1), ("low/0000.png", shown[:1], 4), (PICK, shown[:1], 1)):
        # of picked frames the first alone is of the level inside
        how = ("--set", f'diffusion.frame_pooling="{PICK}"') if low == PICK else ()
        path = files / ("low/0000.png" if low == PICK else low)
        (clip,) = sampled(model, tmp_path / low, "--low", path, *how)
        blocks = clip[: len(given) * times].reshape(len(given), times, 4, 2, 4, 2, 3)
        inside = ((blocks > 0) & (blocks < 255)).all((1, 3, 5))
        assert inside.any()
        assert abs(blocks.mean((1, 3, 5)) - given)[inside].max() <= 1


def test_the_network_is_told_numbers(model: Path, pictures: Path, tmp_path: Path) -> None:
    plain = sampled(model, tmp_path / "plain")[0]
    assert np.array_equal(sampled(model, tmp_path / "same", "--micro", "fps=8")[0], plain)
    for one in ("fps=2", "aspect=0.2"):
        assert not np.array_equal(sampled(model, tmp_path / one, "--micro", one)[0], plain)
    more = ("--micro", "fps=20", "--micro", "aspect=0.2")
    done = tiny.here("sample", model, "--prompt", "a", *more, "--out", tmp_path / "gif")
    assert done.code == 0, done.err
    with Image.open(tmp_path / "gif" / "clip-00000.gif") as gif:
        assert gif.info["duration"] == 50
    drawn = []
    for crop in ("", "crop=0.5", "crop=1"):
        out, options = tmp_path / f"crop{crop}", ("--micro", crop) if crop else ()
        done = tiny.here("sample", pictures, "--prompt", "a", *options, "--out", out)
        assert done.code == 0, done.err
        (path,) = out.glob("picture-*.png")
        drawn.append(path.read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]


def test_frames_of_another_rate_are_said(model: Path, files: Path, tmp_path: Path) -> None:
    note = "fast.gif: has 25 frames a second, what is drawn 8: each is taken as one\n"
    for options, there in (((), True), (("--micro", "fps=24"), False)):
        given = ("--first-frames", files / "fast.gif", *options)
        done = tiny.here("sample", model, "--prompt", "a", *given, "--out", tmp_path / str(there))
        assert done.code == 0
        assert (note in done.err) == there


def test_a_first_frame_is_known_inside_where_frames_are_picked(
    model: Path, files: Path, tmp_path: Path
) -> None:
    for pooling in (PICK, "average"):
        sheets = []
        for seed in ("0", "1"):
            out = tmp_path / pooling / seed
            how = ("--set", f'diffusion.frame_pooling="{pooling}"', "--seed", seed)
            (clip,) = sampled(model, out, "--first-frames", files / "picture.png", *how)
            assert np.array_equal(clip[0], CLIP[0])
            sheets.append((out / "sheet-level-0-1x4x4.png").read_bytes())
        assert (sheets[0] == sheets[1]) == (pooling == PICK)


FIRST, LAST, ON = "--first-frames", "--last-frames", "--continues"
LEFT = "so that some are left to draw"
CANNOT = "cannot be read as a picture, a video or a folder of frames: "
FEWER = "expected fewer than the 4 frames of the clip"
WHOLE = "expected 4 frames, as the clip has, or a picture, which holds for all, got"
UNREAD = "--micro: the levels to draw do not read"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((FIRST, "{clip4}"),
         f"{FIRST}: {{clip4}}: {FEWER}, {LEFT}, got 4 or more; give fewer, or draw more --frames"),
        ((FIRST, "{clip2}", LAST, "{clip3}"),
         f"{LAST}: {{clip3}}: {FEWER} beside the 2 that begin it, {LEFT}, got 3; give fewer, or draw more "
         "--frames"),
        ((ON, "{clip6}", "--overlap", "4"),
         f"{ON}: {{clip6}}: {FEWER}, {LEFT}, got 4; give a smaller --overlap, or draw more --frames"),
        ((ON, "{clip2}", "--overlap", "3"), "--overlap: expected at most the 2 frames of --continues, got 3"),
        ((FIRST, "{text.png}"), f"{FIRST}: {{text.png}}: {CANNOT}*"),
        ((LAST, "{text.mp4}"), f"{LAST}: {{text.mp4}}: {CANNOT}*"),
        ((ON, "{none}"), f"{ON}: {{none}}: {CANNOT}the folder has no pictures"),
        ((ON, "nowhere.mp4"), f"{ON}: nowhere.mp4: {CANNOT}*"),
        (("--overlap", "2"), "--overlap: is about the clip of --continues, which is not given"),
        ((FIRST, "{clip1}", ON, "{clip1}"),
         "--continues: begins the clip, as --first-frames does; leave one out"),
        (("--frames", "0"), "--frames: expected a number of at least 1, got 0"),
        (("--frames", "3"), "--frames: expected 1, a picture, or at least 4, got 3"),
        (("--frames", "8", "--levels", "1"),
         "--frames: the levels to draw have one frame; draw more --levels"),
        (("--canvas", "8x9"),
         "--canvas: expected HEIGHTxWIDTH of at least 8x8, a multiple of 2x2, got '8x9'"),
        (("--low", "{low}", LAST, "{clip1}"),
         f"{LAST}: gives frames of the clip, as --low does; leave one out"),
        (("--low", "{clip4}"), "--low: {clip4}: expected a clip of a level below the highest drawn, 1x4x4 or "
         "4x4x4, got 4x8x8; cut or resize it"),
        (("--init", "{clip3}"), f"--init: {{clip3}}: {WHOLE} 3; cut it, or say --frames"),
        (("--init", "{clip6}"), f"--init: {{clip6}}: {WHOLE} more; cut it, or say --frames"),
        (("--init", "{clip4}", "--mask", "{clip2}"),
         f"--mask: {{clip2}}: {WHOLE} 2; cut it, or say --frames"),
        (("--init", "{clip4}", "--mask", "{large.png}"),
         "--mask: {large.png}: expected the size of --init, 8x8, got 24x24; resize one of the two"),
        (("--micro", "fp=8"), f"{UNREAD} 'fp' (known: aspect, fps, frames)"),
        (("--micro", "aspect=1", "--levels", "2"), f"{UNREAD} 'aspect' (known: fps, frames)"),
        (("--micro", "fps=8", "--levels", "1"), f"{UNREAD} 'fps' (they read none)"),
        (("--micro", "fps"), "--micro: expected NAME=VALUE with a number, as fps=12, got 'fps'"),
        (("--micro", "fps=nan"), "--micro: expected NAME=VALUE with a number, as fps=12, got 'fps=nan'"),
        (("--micro", "fps=1000"), "--micro: expected fps from 0 (not known) to below 1000, got 1000"),
        (("--micro", "fps=8", "--micro", "fps=9"), "--micro: fps is given twice; leave one out"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(
    model: Path, files: Path, tmp_path: Path, arguments: tuple[str, ...], line: str
) -> None:
    def named(text: str) -> str:
        for path in files.iterdir():
            text = text.replace("{" + path.name + "}", str(path))
        return text

    given = [named(argument) for argument in arguments]
    done = tiny.here("sample", model, "--prompt", "x", *given, "--out", tmp_path / "out")
    wanted = f"sample {named(line)}"
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(wanted[:-1]) if wanted.endswith("*") else done.err == f"{wanted}\n"
    assert not (tmp_path / "out").exists()


def test_models_of_pictures_draw_no_clips(pictures: Path, files: Path) -> None:
    given = {FIRST: files / "clip1", LAST: files / "clip1", ON: files / "clip1", "--frames": "4"}
    for option, value in given.items():
        done = tiny.here("sample", pictures, "--prompt", "x", option, value)
        line = f"sample {option}: is for clips, and the model draws pictures; leave it out\n"
        assert done == (2, "", line)
