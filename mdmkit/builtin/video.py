"""Settings and registrations of the built-in components: clips, captioned shapes that move. No torch."""

from __future__ import annotations

import attrs

from mdmkit.plugins.component import Component
from mdmkit.recipe.options import opt

from .shapes import COLOURS, SHAPES, SIZES, TEXTURES

__all__ = [
    "COMPONENTS",
    "FramesFolder",
    "MotionAccuracy",
    "MovingShapes",
    "TemporalConsistency",
    "VideoFolder",
    "WebDatasetVideo",
]

DIRECTIONS = ("left", "right", "up", "down", "up left", "up right", "down left", "down right")
MOTIONS = (*DIRECTIONS, "grow", "shrink", "clockwise", "anticlockwise", "still", "bounce", "stop")
SPEEDS = ("slow", "medium", "fast")


@attrs.frozen
class MovingShapes:
    """Procedural clips of one or two coloured shapes that move, with captions, endless, no files."""

    objects: tuple[int, int] = opt((1, 2), "least and most objects a clip", ge=1, le=2)
    motions: tuple[str, ...] = opt(
        MOTIONS, "motions to draw from; bounce, stop: two objects run into each other", choices=MOTIONS
    )
    speeds: tuple[str, ...] = opt(SPEEDS, "speeds of objects that move", choices=SPEEDS)
    sequences: bool = opt(True, "some clips show two motions, one after the other")
    shapes: tuple[str, ...] = opt(SHAPES, "shapes to draw from", choices=SHAPES)
    colours: tuple[str, ...] = opt(COLOURS, "colours to draw from", choices=COLOURS)
    sizes: tuple[str, ...] = opt(SIZES, "sizes to draw from", choices=SIZES)
    textures: tuple[str, ...] = opt(TEXTURES, "textures to draw from", choices=TEXTURES)
    split: str = opt(
        "train",
        "held_out: the pairs of motion and shape that train never shows",
        choices=("train", "held_out", "all"),
    )
    background: str = opt("light", "varied: pale tints with a gradient", choices=("light", "varied"))
    wording: str = opt(
        "varied", "plain: every attribute that varies, always in the same words", choices=("plain", "varied")
    )


@attrs.frozen
class VideoFolder:
    """Videos in a folder, captions in .txt files, a table or the names of subfolders."""

    path: str = opt(help="the folder; mp4, webm, mkv, mov, m4v and avi at any depth are taken")
    fps: float | None = opt(
        None, "frames a second that are taken; as the video has them where not given", gt=0
    )
    start: str = opt(
        "random",
        "where a clip begins in its video; random: by position",
        choices=("random", "first", "center"),
    )
    short: str = opt(
        "skip", "videos that are too short; hold: repeat the last frame", choices=("skip", "hold")
    )
    captions: str = opt(
        "auto",
        "txt: name.txt beside each video; csv: a table; folders: class subfolders; auto: what is there",
        choices=("auto", "txt", "csv", "folders", "none"),
    )
    table: str | None = opt(None, "the CSV or TSV, relative to path; the only one there where not given")
    file_column: str = opt("file", "the table's column of videos, relative to the table")
    caption_column: str = opt("caption", "the table's column of captions")
    crop: str = opt("center", "which part is kept where the aspect differs", choices=("center", "random"))
    flip: bool = opt(False, "mirror half of the clips, drawn by position")
    shuffle: bool = opt(True, "an order of its own in every epoch; else by name")
    max_bad: int = opt(100, "stop after so many unreadable samples in a row", ge=1)


@attrs.frozen
class FramesFolder:
    """Folders of numbered frames, a clip each, captions in .txt files, a table or the names of subfolders."""

    path: str = opt(help="the folder; every folder in it that holds pictures is a clip")
    source_fps: float | None = opt(None, "frames a second of what is stored, where that is known", gt=0)
    fps: float | None = opt(
        None, "frames a second that are taken; needs source_fps; every frame where not given", gt=0
    )
    start: str = opt(
        "random",
        "where a clip begins in its video; random: by position",
        choices=("random", "first", "center"),
    )
    short: str = opt(
        "skip", "videos that are too short; hold: repeat the last frame", choices=("skip", "hold")
    )
    captions: str = opt(
        "auto",
        "txt: name.txt beside each folder; csv: a table; folders: class subfolders; auto: what is there",
        choices=("auto", "txt", "csv", "folders", "none"),
    )
    table: str | None = opt(None, "the CSV or TSV, relative to path; the only one there where not given")
    file_column: str = opt("file", "the table's column of folders, relative to the table")
    caption_column: str = opt("caption", "the table's column of captions")
    crop: str = opt("center", "which part is kept where the aspect differs", choices=("center", "random"))
    flip: bool = opt(False, "mirror half of the clips, drawn by position")
    shuffle: bool = opt(True, "an order of its own in every epoch; else by name")
    max_bad: int = opt(100, "stop after so many unreadable samples in a row", ge=1)


@attrs.frozen
class WebDatasetVideo:
    """WebDataset shards (tar files) with a video a sample, local or remote, read at random."""

    urls: str = opt(
        help='brace pattern such as "train-{000000..000041}.tar", several joined by ::, or a folder'
    )
    fps: float | None = opt(
        None, "frames a second that are taken; as the video has them where not given", gt=0
    )
    start: str = opt(
        "random",
        "where a clip begins in its video; random: by position",
        choices=("random", "first", "center"),
    )
    short: str = opt(
        "skip", "videos that are too short; hold: repeat the last frame", choices=("skip", "hold")
    )
    caption: str = opt("txt", "member that holds the caption, a json field such as json.caption, or none")
    crop: str = opt("center", "which part is kept where the aspect differs", choices=("center", "random"))
    flip: bool = opt(False, "mirror half of the clips, drawn by position")
    shuffle: bool = opt(True, "permute shards and samples in every epoch; else in file order")
    window: int = opt(8, "shards among which samples are shuffled", ge=1)
    features: bool = opt(False, "read the text features that mdmkit pack has stored")
    cache: str | None = opt(None, "folder for indices and fetched shards; ~/.cache/mdmkit where not given")
    max_bad: int = opt(100, "stop after so many unreadable samples in a row", ge=1)


@attrs.frozen
class MotionAccuracy:
    """Shares of moving_shapes prompts with objects, motions, order right, beside the checker's own."""

    true_clips: int = opt(64, "captions whose true clip is read too, for the checker's own accuracy", ge=0)


@attrs.frozen
class TemporalConsistency:
    """Warping error of clips of moving_shapes with the motion read off them, beside that of true clips."""

    true_clips: int = opt(64, "captions whose true clip is measured too", ge=0)


COMPONENTS: list[Component] = [
    Component("dataset", "moving_shapes", MovingShapes, "mdmkit.data.moving_shapes:MovingShapes"),
    Component("dataset", "video_folder", VideoFolder, "mdmkit.data.clips:VideoFolder"),
    Component("dataset", "frames_folder", FramesFolder, "mdmkit.data.clips:FramesFolder"),
    Component("dataset", "webdataset_video", WebDatasetVideo, "mdmkit.data.clips:WebDatasetVideo"),
    Component("metric", "motion_accuracy", MotionAccuracy, "mdmkit.evaluate.motion_accuracy:MotionAccuracy"),
    Component(
        "metric",
        "temporal_consistency",
        TemporalConsistency,
        "mdmkit.evaluate.temporal_consistency:TemporalConsistency",
    ),
]
