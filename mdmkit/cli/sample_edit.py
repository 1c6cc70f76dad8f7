"""What `mdmkit sample` draws from: a picture, a part of it, a low level, a way between seeds or prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from mdmkit.errors import WrongInput

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mdmkit.recipe.schema import Recipe
    from mdmkit.sampling.conditions import Conditions
    from mdmkit.sampling.edit import Known, Start
    from mdmkit.sampling.seeds import Seed
    from mdmkit.sampling.windows import Windows

__all__ = ["Canvas", "Init", "Low", "Mask", "Passes", "Sources", "Strength", "ToPrompt", "ToSeed"]

Init = Annotated[
    Path | None, typer.Option(help="draw variations of this picture or clip; cropped to the model's size")
]
Strength = Annotated[
    float | None, typer.Option(help="how far --init is left, 0 to 1; 0.6, with --mask 1, where not given")
]
Mask = Annotated[
    Path | None, typer.Option(help="a picture (or clip) of --init's size: where it is white, --init is kept")
]
Low = Annotated[
    Path | None, typer.Option(help="draw the levels above this picture or clip of a level's size")
]
Passes = Annotated[
    int | None,
    typer.Option(help="with --mask, --low or frames: go through each 5 steps so often, to fit better"),
]
ToSeed = Annotated[int | None, typer.Option(help="--count pictures on the way from --seed to this seed")]
ToPrompt = Annotated[
    str | None, typer.Option(help="--count pictures on the way from the prompt to this one, of one seed")
]
Canvas = Annotated[
    str | None, typer.Option(help="a larger picture than trained, HEIGHTxWIDTH, in overlapping windows")
]


@attrs.frozen
class Sources:
    """The options, checked against each other. Raises WrongInput where they do not go together."""

    init: Path | None
    strength: float | None
    mask: Path | None
    low: Path | None
    to_seed: int | None
    to_prompt: str | None
    canvas: str | None
    passes: int | None = None
    given_frames: bool = False  # of a clip, by other options

    def __attrs_post_init__(self) -> None:
        for name, value in (("--strength", self.strength), ("--mask", self.mask)):
            if value is not None and self.init is None:
                raise WrongInput(f"sample {name}: is about the picture of --init, which is not given")
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise WrongInput(
                f"sample --strength: expected 0 (the picture) to 1 (another one), got {self.strength:g}"
            )
        if self.low is not None and self.init is not None:
            raise WrongInput("sample --low: gives the picture to draw for, as --init does; leave one out")
        known = self.mask is not None or self.low is not None or self.given_frames
        if self.passes is not None and not known:
            raise WrongInput("sample --passes: fits the rest to --mask, --low or frames, and none is given")
        if self.passes is not None and self.passes < 1:
            raise WrongInput(f"sample --passes: expected a number of at least 1, got {self.passes}")
        if self.to_seed is not None and self.to_seed < 0:
            raise WrongInput(f"sample --to-seed: expected a seed of at least 0, got {self.to_seed}")

    def check_way(self, prompts: Sequence[str], count: int) -> None:
        """WrongInput where there is no way between two seeds or prompts."""
        given = {"--to-seed": self.to_seed, "--to-prompt": self.to_prompt}
        for name in (name for name, value in given.items() if value is not None):
            if count < 2:
                raise WrongInput(f"sample {name}: expected --count of at least 2, got {count}")
        if self.to_prompt is not None and len(prompts) != 1:
            raise WrongInput(f"sample --to-prompt: expected one --prompt to start from, got {len(prompts)}")

    def seeds(self, first: int, prompts: int, count: int) -> Sequence[Seed] | None:
        """Those of all pictures, `count` a prompt; None: counted from the first."""
        from mdmkit.sampling.seeds import Between

        if self.to_seed is not None:
            return [Between(first, self.to_seed, weight) for weight in weights(count)] * prompts
        return [first] * count if self.to_prompt is not None else None

    def captions(self, prompts: Sequence[str], count: int) -> list[str]:
        """What is drawn for, a caption a picture."""
        if self.to_prompt is None:
            return [caption for caption in prompts for _ in range(count)]
        return [
            f"{prompts[0]} to {self.to_prompt}: {weight:.0%}" for weight in weights(count)
        ]

    def conditions(self, text: Any, prompt: str, negative: str, count: int) -> Conditions:
        """The text features on the way from the prompt to the other one."""
        import torch

        from mdmkit.sampling.conditions import between, encoded

        assert self.to_prompt is not None
        with torch.no_grad():
            (_, ends), *_ = encoded(text, [prompt, self.to_prompt], negative, batch=2, apart=False)
        return between(ends, weights(count))

    def windows(
        self, trained: Sequence[tuple[int, ...]], recipe: Recipe
    ) -> tuple[Sequence[tuple[int, ...]], Windows | None]:
        """The resolutions to draw, and windows of the trained ones. WrongInput where they do not fit."""
        from mdmkit.sampling.windows import Windows

        if self.canvas is None:
            return trained, None
        refuse_frames(recipe, "--canvas")
        return canvas_of(self.canvas, trained), Windows(tuple(trained))

    def pictures(
        self, resolutions: Sequence[tuple[int, ...]], recipe: Recipe
    ) -> tuple[Start | None, Known | None]:
        """What is begun with, and what is known. WrongInput where a picture is not one or does not fit."""
        from mdmkit import assemble
        from mdmkit.pyramid import pyramid
        from mdmkit.sampling.edit import Start, known_low, known_region

        frames = assemble.frames(recipe)
        kept = None if frames is None else frames[: len(resolutions)]
        if self.low is not None:
            refuse_frames(recipe, "--low")
            size, most = opened(self.low, "--low").size[::-1], list(resolutions)
            if size not in most[:-1]:
                raise WrongInput(
                    f"sample --low: {self.low}: expected a picture of a level below the highest drawn, "
                    f"{' or '.join(f'{h}x{w}' for h, w in most[:-1]) or 'of which there is none'}, got "
                    f"{size[0]}x{size[1]}; resize it"
                )
            known = known_low(tensor(self.low, "--low", size), resolutions)
            return None, attrs.evolve(known, passes=self.passes or 1)
        if self.init is None:
            return None, None
        side = resolutions[-1][-2], resolutions[-1][-1]
        picture = tensor(self.init, "--init", side)
        known = None
        if self.mask is not None:
            size, wanted = opened(self.mask, "--mask").size, opened(self.init, "--init").size
            if size != wanted:
                raise WrongInput(
                    f"sample --mask: {self.mask}: expected the size of --init, {wanted[1]}x{wanted[0]}, got "
                    f"{size[1]}x{size[0]}; resize one of the two"
                )
            mask = tensor(self.mask, "--mask", side).mean(1, keepdim=True) > 0
            known = known_region(picture, mask, resolutions, frames=kept)
            known = attrs.evolve(known, passes=self.passes or 1)
        strength = self.strength if self.strength is not None else 0.6 if known is None else 1.0
        return Start(pyramid(picture, resolutions, frames=kept), strength), known


def canvas_of(canvas: str, trained: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The resolutions of all levels on a canvas, HEIGHTxWIDTH; of clips as long as those trained.

    WrongInput where it does not fit.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", canvas)
    wanted = (int(match[1]), int(match[2])) if match else (0, 0)
    own = trained[-1][-2:]
    ratios = [top // low for top, low in zip(own, trained[0][-2:], strict=True)]
    if any(side < most or side % r for side, most, r in zip(wanted, own, ratios, strict=True)):
        raise WrongInput(
            f"sample --canvas: expected HEIGHTxWIDTH of at least {own[0]}x{own[1]}, a multiple of "
            f"{ratios[0]}x{ratios[1]}, got '{canvas}'"
        )
    return [(*size[:-2], wanted[0] * size[-2] // own[0], wanted[1] * size[-1] // own[1]) for size in trained]


def refuse_frames(recipe: Recipe, option: str) -> None:
    """WrongInput for what is for pictures alone, where the model draws frames."""
    from mdmkit import assemble

    what = "clips" if assemble.draws_clips(recipe) else "grids of frames"
    if what == "clips" or assemble.frames(recipe) is not None:
        raise WrongInput(f"sample {option}: is for pictures, and the model draws {what}")


def weights(count: int) -> list[float]:
    """From 0 to 1, ends and all."""
    return [i / (count - 1) for i in range(count)]


def opened(path: Path, option: str) -> Any:
    """A picture as upright RGB. WrongInput where it cannot be read."""
    from mdmkit.data.pictures import decode

    try:
        return decode(path.read_bytes())[0]
    except (OSError, ValueError) as error:
        raise WrongInput(f"sample {option}: {path}: cannot be read as a picture: {error}") from error


def tensor(path: Path, option: str, size: tuple[int, int]) -> Tensor:
    """A picture (1, 3, height, width) in [-1, 1], its middle cropped and resized to a size."""
    from mdmkit.data.pictures import fit

    return in_range(fit(opened(path, option), size))


def in_range(values: np.ndarray) -> Tensor:
    """Bytes (..., H, W, 3) as (1, 3, ..., H, W) in [-1, 1]."""
    import torch

    return torch.from_numpy(values).movedim(-1, 0)[None].float() / 127.5 - 1
