"""Clips from files: videos in shards, videos in a folder, and folders of numbered frames.

They are read like pictures: by position, at random, with the captions that datasets of pictures take, and
what cannot be read is passed over and named.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from mdmkit.errors import WrongInput

from .folder import Folder
from .order import Place
from .pictures import EXTENSIONS, decode, fit
from .sample import Sample, Unreadable
from .shards import FEATURES, WebDataset, features_in, original, span_of
from .videos import VIDEO_EXTENSIONS, Clip, Cut, Part, read_clip, require_av

__all__ = ["FramesFolder", "VideoFolder", "WebDatasetVideo", "numbered_frames"]


class VideoFolder(Folder):
    """Videos (mp4, webm, mkv, mov, m4v, avi) under `path`, at any depth, shuffled anew in every epoch.

    `captions`, `table`, `file_column`, `caption_column`, `crop`, `flip`: as of a `Folder`. `frames`, `fps`,
    `start`, `short`: which part is taken, as `videos.Cut` has it; without frames a sample is a picture, one
    frame. Raises MdmkitError where PyAV is not installed.
    """

    things, extensions = "videos", VIDEO_EXTENSIONS

    def __init__(
        self,
        *,
        seed: int,
        resolution: int | tuple[int, int],
        frames: int | None = None,
        path: str,
        fps: float | None = None,
        start: str = "random",
        short: str = "skip",
        captions: str = "auto",
        table: str | None = None,
        file_column: str = "file",
        caption_column: str = "caption",
        crop: str = "center",
        flip: bool = False,
        shuffle: bool = True,
        max_bad: int = 100,
    ) -> None:
        require_av()
        self.frames, self.cut = frames, Cut(1 if frames is None else frames, fps, start, short)
        super().__init__(
            seed=seed, resolution=resolution, path=path, captions=captions, table=table,
            file_column=file_column, caption_column=caption_column, crop=crop, flip=flip, shuffle=shuffle,
            max_bad=max_bad,
        )  # fmt: skip

    def read(self, place: Place, position: int, resolution: tuple[int, int] | None = None) -> Sample:
        """The sample at a place; `position` draws the crop and where it starts."""
        name = self.files[place.row]
        drawn: dict[str, Any] = {"crop": self.crop, "flip": self.flip, "key": (self.seed, position)}
        try:
            clip = read_clip(self.root / name, resolution or self.resolution, self.cut, **drawn)
            caption = self._caption(name)
        except Exception as error:  # decoders raise what they like on broken data
            raise _unreadable(name, error) from error
        return _sample(clip, self.frames, caption, name)

    def picture_sizes(self) -> list[np.ndarray]:
        """WrongInput: clips are not sorted by their sizes."""
        raise WrongInput(NO_SIZES)


class FramesFolder(Folder):
    """Folders of numbered frames under `path`, a clip each, shuffled anew in every epoch.

    A clip is every folder that holds pictures; the last number in a frame's name is its place, and none may
    be missing in between. `captions`: as of a `Folder`, with "txt" beside the folder (clip/0001.png,
    clip.txt) and folders in a table's file column. `source_fps`: frames a second of what is stored, where
    that is known; `fps` then picks by time, else every frame is taken. `frames`, `start`, `short`: as
    `videos.Cut` has it; without frames a sample is a picture, one frame.
    """

    things = "folders of frames"

    def __init__(
        self,
        *,
        seed: int,
        resolution: int | tuple[int, int],
        frames: int | None = None,
        path: str,
        source_fps: float | None = None,
        fps: float | None = None,
        start: str = "random",
        short: str = "skip",
        captions: str = "auto",
        table: str | None = None,
        file_column: str = "file",
        caption_column: str = "caption",
        crop: str = "center",
        flip: bool = False,
        shuffle: bool = True,
        max_bad: int = 100,
    ) -> None:
        if (fps is not None and source_fps is None) or (source_fps is not None and not source_fps > 0):
            raise ValueError(f"fps picks among frames whose source_fps is known, got source_fps={source_fps}")
        self.source_fps, self.told_fps = source_fps or 1.0, source_fps is not None
        self.frames, self.cut = frames, Cut(1 if frames is None else frames, fps, start, short)
        super().__init__(
            seed=seed, resolution=resolution, path=path, captions=captions, table=table,
            file_column=file_column, caption_column=caption_column, crop=crop, flip=flip, shuffle=shuffle,
            max_bad=max_bad,
        )  # fmt: skip

    def read(self, place: Place, position: int, resolution: tuple[int, int] | None = None) -> Sample:
        """The sample at a place; `position` draws the crop and where it starts."""
        name, resolution = self.files[place.row], resolution or self.resolution
        key = (self.seed, position)
        try:
            numbered = numbered_frames(self.root / name)
            times = self.cut.times(len(numbered) / self.source_fps, self.source_fps, key)
            rows = np.floor(times * self.source_fps + 1e-6).astype(int)
            pictures = {}
            for row in sorted({int(row) for row in rows}):
                file = self.root / name / numbered[row]
                picture, size = decode(file.read_bytes(), at_least=2 * max(resolution))
                pictures[row] = fit(picture, resolution, crop=self.crop, flip=self.flip, key=key), size
            caption = self._caption(name)
        except Exception as error:  # decoders raise what they like on broken data
            raise _unreadable(name, error) from error
        image = np.stack([pictures[int(row)][0] for row in rows])
        clip = Clip(image, pictures[int(rows[0])][1], self.cut.fps or self.source_fps, len(pictures))
        return _sample(clip, self.frames, caption, name, **({} if self.told_fps else {"fps": None}))

    def picture_sizes(self) -> list[np.ndarray]:
        """WrongInput: clips are not sorted by their sizes."""
        raise WrongInput(NO_SIZES)

    def _found(self, names: list[str]) -> list[str]:
        return sorted({name.rpartition("/")[0] for name in super()._found(names) if "/" in name})

    def _stem(self, name: str) -> str:
        return name

    def _is_there(self, name: str) -> bool:
        return (self.root / name).is_dir()


def numbered_frames(folder: Path) -> list[str]:
    """The names of a folder's frames in the order of the last number in them.

    Raises ValueError for frames without a number, two of one, and numbers that are missing in between.
    """
    numbers: dict[int, str] = {}
    for file in os.listdir(folder):
        stem, _, suffix = file.rpartition(".")
        if suffix.lower() not in EXTENSIONS or file.startswith("."):
            continue
        found = re.findall(r"\d+", stem)
        if not found:
            raise ValueError(f"its frame {file} has no number")
        if int(found[-1]) in numbers:
            raise ValueError(f"its frames {numbers[int(found[-1])]} and {file} have one number")
        numbers[int(found[-1])] = file
    first = min(numbers, default=0)
    missing = next((n for n in range(first, first + len(numbers)) if n not in numbers), None)
    if missing is not None:
        raise ValueError(f"its frame {missing} is missing")
    return [numbers[number] for number in sorted(numbers)]


class WebDatasetVideo(WebDataset):
    """Clips in tar files: a video member (mp4, webm, mkv, mov, m4v, avi) a sample, captions, json, features.

    `urls`, `caption`, `window`, `features`, `cache`: as of a `WebDataset`, and so is the order. A video is
    read where it stands in the tar: only the parts that its frames need. `frames`, `fps`, `start`, `short`:
    which part is taken, as `videos.Cut` has it; without frames a sample is a picture, one frame. Raises
    MdmkitError where PyAV is not installed.
    """

    def __init__(
        self,
        *,
        seed: int,
        resolution: int | tuple[int, int],
        frames: int | None = None,
        urls: str,
        fps: float | None = None,
        start: str = "random",
        short: str = "skip",
        caption: str = "txt",
        crop: str = "center",
        flip: bool = False,
        shuffle: bool = True,
        window: int = 8,
        features: bool = False,
        cache: str | None = None,
        max_bad: int = 100,
    ) -> None:
        require_av()
        self.frames, self.cut = frames, Cut(1 if frames is None else frames, fps, start, short)
        super().__init__(
            seed=seed, resolution=resolution, urls=urls, caption=caption, crop=crop, flip=flip,
            shuffle=shuffle, window=window, features=features, cache=cache, max_bad=max_bad,
        )  # fmt: skip

    def read(self, place: Place, position: int, resolution: tuple[int, int] | None = None) -> Sample:
        """The sample at a place; `position` draws the crop and where it starts."""
        index = self._index(place.shard)
        key = f"{self.shards[place.shard].name}/{index.keys[place.row]}"
        members = index.members(place.row)
        drawn: dict[str, Any] = {"crop": self.crop, "flip": self.flip, "key": (self.seed, position)}
        features = mask = None
        try:
            extension = next((ext for ext in VIDEO_EXTENSIONS if ext in members), None)
            if extension is None:
                raise ValueError(f"it has no video (it has {', '.join(sorted(members))})")
            part = Part(self._file(place.shard), *members[extension])
            clip = read_clip(part, resolution or self.resolution, self.cut, **drawn)
            caption = self._caption(place.shard, members)
            size = clip.size
            if "json" in members:
                size = original(json.loads(self._bytes(place.shard, members["json"])), size)
            if self.features:
                features, mask = features_in(self._bytes(place.shard, span_of(members, FEATURES)))
        except Exception as error:  # decoders raise what they like on broken data
            raise _unreadable(key, error) from error
        return _sample(clip, self.frames, caption, key, size=size, features=features, features_mask=mask)

    def picture_sizes(self) -> list[np.ndarray]:
        """WrongInput: clips are not sorted by their sizes."""
        raise WrongInput(NO_SIZES)


NO_SIZES = 'clips are not sorted by their sizes; say another train.levels than "by_source"'


def _sample(clip: Clip, frames: int | None, caption: str, key: str, **more: Any) -> Sample:
    image, fps = (clip.image[0], None) if frames is None else (clip.image, clip.fps)
    return Sample(**{"image": image, "caption": caption, "key": key, "size": clip.size, "fps": fps, **more})


def _unreadable(key: str, error: Exception) -> Unreadable:
    return Unreadable(key, f"{type(error).__name__}: {' '.join(str(error).split())}")
