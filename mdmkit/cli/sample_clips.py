"""What `mdmkit sample` draws clips from: their first and last frames, a clip that goes on, low clips."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from mdmkit.errors import MdmkitError, WrongInput

from .sample_edit import canvas_of, in_range

if TYPE_CHECKING:
    from torch import Tensor

    from mdmkit.data.frames import Frames
    from mdmkit.recipe.schema import Recipe
    from mdmkit.sampling.edit import Known, Start
    from mdmkit.sampling.windows import Windows

    from .sample_edit import Sources

__all__ = ["Begun", "ClipSources", "Continues", "FirstFrames", "FrameCount", "LastFrames", "Overlap"]

FirstFrames = Annotated[
    Path | None,
    typer.Option(help="clips begin with the frames of a picture, a video or a folder of numbered pictures"),
]
LastFrames = Annotated[Path | None, typer.Option(help="they end with these; with both: what lies between")]
Continues = Annotated[
    Path | None, typer.Option(help="draw how this clip goes on; it is written in front of what is drawn")
]
Overlap = Annotated[
    int | None,
    typer.Option(help="so many last frames of --continues begin the new clip; half of the trained ones"),
]
FrameCount = Annotated[
    int | None,
    typer.Option("--frames", help="longer clips than trained, in overlapping windows; 1: pictures"),
]

NEAR = 0.1  # a frame of a GIF lasts whole hundredths of a second: 8 a second become 8.33


@attrs.frozen(eq=False)
class Begun:
    """What drawing begins with, what is known, and the frames (3, F, H, W) that are written in front."""

    start: Start | None = None
    known: Known | None = None
    before: Tensor | None = None

    def whole(self, drawn: Tensor) -> Tensor:
        """A drawn clip behind what is written in front of it."""
        import torch

        return drawn if self.before is None else torch.cat([self.before, drawn], 1)


@attrs.frozen
class ClipSources:
    """The options about clips. Raises WrongInput where they do not go together."""

    first: Path | None = None
    last: Path | None = None
    continues: Path | None = None
    overlap: int | None = None
    frames: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.overlap is not None and self.continues is None:
            raise WrongInput("sample --overlap: is about the clip of --continues, which is not given")
        if self.first is not None and self.continues is not None:
            raise WrongInput("sample --continues: begins the clip, as --first-frames does; leave one out")
        for name, value in (("--overlap", self.overlap), ("--frames", self.frames)):
            if value is not None and value < 1:
                raise WrongInput(f"sample {name}: expected a number of at least 1, got {value}")

    @property
    def given(self) -> dict[str, Path]:
        """The options that give frames."""
        every = {"--first-frames": self.first, "--continues": self.continues, "--last-frames": self.last}
        return {name: path for name, path in every.items() if path is not None}

    def check(self, recipe: Recipe) -> None:
        """WrongInput where one is given, and the model draws no clips."""
        from mdmkit import assemble

        options = [*self.given, *([] if self.frames is None else ["--frames"])]
        if options and not assemble.draws_clips(recipe):
            what = "pictures" if assemble.frames(recipe) is None else "grids of frames"
            raise WrongInput(f"sample {options[0]}: is for clips, and the model draws {what}; leave it out")

    def windows(
        self, trained: Sequence[tuple[int, ...]], canvas: str | None
    ) -> tuple[Sequence[tuple[int, ...]], Windows | None]:
        """The resolutions to draw, and windows of the trained ones. WrongInput where they do not fit.

        A level of one frame stays one, which all windows see; the others become longer alike. Of one frame in
        all are pictures, at every level.
        """
        from mdmkit.pyramid import of_one_frame
        from mdmkit.sampling.windows import Windows

        if canvas is None and self.frames is None:
            return trained, None
        if self.frames == 1:
            trained = of_one_frame(trained)
        sizes = list(trained) if canvas is None else canvas_of(canvas, trained)
        if self.frames is not None and self.frames > 1:
            longest = trained[-1][0]
            if longest == 1:
                raise WrongInput("sample --frames: the levels to draw have one frame; draw more --levels")
            step = longest // next(count for count, *_ in trained if count > 1)
            if self.frames < longest or self.frames % step:
                multiple = f", a multiple of {step}" if step > 1 else ""
                raise WrongInput(
                    f"sample --frames: expected 1, a picture, or at least {longest}{multiple}, got "
                    f"{self.frames}"
                )
            sizes = [
                (count if count == 1 else self.frames * count // longest, *side) for count, *side in sizes
            ]
        return sizes, None if sizes == list(trained) else Windows(tuple(trained))

    def begun(
        self,
        sources: Sources,
        resolutions: Sequence[tuple[int, ...]],
        recipe: Recipe,
        *,
        trained: int,
        rate: float,
    ) -> Begun:
        """What the files hold. WrongInput where one cannot be read, or does not fit.

        `trained`: how many frames the model's own clips have; `rate`: frames a second of what is drawn.
        """
        import torch

        from mdmkit import assemble
        from mdmkit.pyramid import pyramid
        from mdmkit.sampling.edit import Start, known_low, known_region

        pick, passes = assemble.picks_frames(recipe), sources.passes or 1
        if sources.low is not None:
            if self.given:
                option = next(iter(self.given))
                raise WrongInput(f"sample {option}: gives frames of the clip, as --low does; leave one out")
            low = low_clip(sources.low, resolutions, rate)
            return Begun(known=attrs.evolve(known_low(low, resolutions, pick=pick), passes=passes))
        clip, mask = torch.zeros(1, 3, *resolutions[-1]), torch.zeros(1, 1, *resolutions[-1])
        if sources.init is not None:
            clip, mask = masked_clip(sources.init, sources.mask, resolutions[-1], rate)
        before = self.lay(clip, mask, trained, rate)
        start = known = None
        if sources.init is not None:
            usual = 0.6 if sources.mask is None else 1.0
            strength = usual if sources.strength is None else sources.strength
            start = Start(pyramid(clip, resolutions, pick=pick), strength)
        if self.given or sources.mask is not None:
            known = attrs.evolve(known_region(clip, mask, resolutions, pick=pick), passes=passes)
        return Begun(start, known, before)

    def lay(self, clip: Tensor, mask: Tensor, trained: int, rate: float) -> Tensor | None:
        """Puts given frames into a clip (1, 3, F, H, W) and its mask; the frames in front where it goes on.

        WrongInput where there are too many.
        """
        length, size = clip.shape[2], (clip.shape[3], clip.shape[4])
        before: Tensor | None = None
        taken = 0
        for option, path in self.given.items():
            most = None if option == "--continues" else length
            frames = in_range(read(path, option, rate, size=size, most=most).image)
            if option == "--continues":
                count = frames.shape[2]
                overlap = min(max(trained // 2, 1), count) if self.overlap is None else self.overlap
                if overlap > count:
                    raise WrongInput(
                        f"sample --overlap: expected at most the {count} frames of --continues, got {overlap}"
                    )
                before, frames = frames[0, :, : count - overlap], frames[:, :, count - overlap :]
            count = frames.shape[2]
            if taken + count >= length:
                beside = f" beside the {taken} that begin it" if taken else ""
                came = f"{count} or more" if count == most else f"{count}"
                fewer = "a smaller --overlap" if option == "--continues" else "fewer"
                raise WrongInput(
                    f"sample {option}: {path}: expected fewer than the {length} frames of the clip{beside}, "
                    f"so that some are left to draw, got {came}; give {fewer}, or draw more --frames"
                )
            where = slice(length - count, length) if option == "--last-frames" else slice(0, count)
            clip[:, :, where], mask[:, :, where] = frames, 1
            taken += count
        return before


def read(
    path: Path, option: str, rate: float, *, size: tuple[int, int] | None = None, most: int | None = None
) -> Frames:
    """All frames of a file or folder, as `mdmkit.data.frames` has it; says where they have another rate.

    WrongInput where they cannot be read.
    """
    from mdmkit.data.frames import read_frames

    try:
        frames = read_frames(path, size, most=most)
    except MdmkitError:
        raise
    except Exception as error:  # decoders raise what they like on broken data
        raise WrongInput(
            f"sample {option}: {path}: cannot be read as a picture, a video or a folder of frames: "
            f"{' '.join(str(error).split())}"
        ) from error
    if len(frames.image) > 1 and frames.fps is not None and abs(frames.fps / rate - 1) > NEAR:
        print(
            f"{path}: has {frames.fps:.4g} frames a second, what is drawn {rate:.4g}: each is taken as one",
            file=sys.stderr,
        )
    return frames


def low_clip(path: Path, resolutions: Sequence[tuple[int, ...]], rate: float) -> Tensor:
    """A clip of the size of a level below the highest."""
    low = in_range(read(path, "--low", rate).image)
    size, inner = tuple(low.shape[2:]), list(resolutions)[:-1]
    if size not in inner:
        sizes = " or ".join(named(one) for one in inner) or "of which there is none"
        raise WrongInput(
            f"sample --low: {path}: expected a clip of a level below the highest drawn, {sizes}, got "
            f"{named(size)}; cut or resize it"
        )
    return low


def masked_clip(
    path: Path, mask_path: Path | None, size: Sequence[int], rate: float
) -> tuple[Tensor, Tensor]:
    """The clip to begin with (1, 3, F, H, W), and where it is kept (1, 1, F, H, W)."""
    import torch

    length, height, width = size
    side = (height, width)
    given = read(path, "--init", rate, size=side, most=length + 1)
    clip = held(in_range(given.image), path, "--init", length)
    if mask_path is None:
        return clip, torch.zeros(1, 1, *size)
    shown = read(mask_path, "--mask", rate, size=side, most=length + 1)
    if shown.size != given.size:
        raise WrongInput(
            f"sample --mask: {mask_path}: expected the size of --init, {given.size[0]}x{given.size[1]}, got "
            f"{shown.size[0]}x{shown.size[1]}; resize one of the two"
        )
    mask = held(in_range(shown.image), mask_path, "--mask", length)
    return clip, (mask.mean(1, keepdim=True) > 0).float()


def held(clip: Tensor, path: Path, option: str, length: int) -> Tensor:
    """A clip of as many frames as are drawn; a picture is held."""
    count = clip.shape[2]
    if count not in (1, length):
        came = f"{count}" if count < length else "more"
        raise WrongInput(
            f"sample {option}: {path}: expected {length} frames, as the clip has, or a picture, which holds "
            f"for all, got {came}; cut it, or say --frames"
        )
    return clip.repeat(1, 1, length // count, 1, 1)


def named(size: Sequence[int]) -> str:
    """Frames x height x width."""
    return "x".join(map(str, size))
