"""WebDataset shards, read at random through an index of their members."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
from collections import OrderedDict
from typing import Any

import numpy as np

from mdmkit.errors import MdmkitError, WrongInput

from . import sizes, tarindex
from .fetch import cache_folder, local_files
from .order import Order, Place
from .pictures import EXTENSIONS, as_size, decode, fit
from .sample import Sample, Unreadable, first_readable

__all__ = ["FEATURES", "WebDataset", "features_in", "original", "span_of"]

FEATURES = "features.safetensors"


class WebDataset:
    """Samples in tar files: pictures, captions, json, text features.

    `urls`: a brace pattern ("train-{000000..001241}.tar"), several joined by "::", or a folder; remote URLs
    go through fsspec, fetched whole into the cache. `caption`: the member that holds the caption ("txt"), a
    field of a json member ("json.caption"), or "none". The picture is the member packed for the wanted
    resolution ("64.png"), else the smallest packed one above it, else the first of png, jpg, ...
    `features`: read the text features that `pack` has stored; `empty_features()` then gives those of the
    empty caption. The original size for micro-conditioning is json's original_width and original_height,
    else width and height, else the picture's.

    Shards are permuted in every epoch, their samples within windows of `window` shards. There is no
    splitting by rank or worker: the order is global, and each rank and worker asks for the positions that
    are its own.

    The tars' headers are read once into an index in `cache` (default: ~/.cache/mdmkit), again when a
    shard's size or time of change is another; an index that `pack` wrote beside a shard is used where it
    fits.

    WrongInput where shards are missing, MdmkitError where one is damaged or holds nothing.
    """

    def __init__(
        self,
        *,
        seed: int,
        resolution: int | tuple[int, int],
        urls: str,
        caption: str = "txt",
        crop: str = "center",
        flip: bool = False,
        shuffle: bool = True,
        window: int = 8,
        features: bool = False,
        cache: str | None = None,
        max_bad: int = 100,
    ) -> None:
        self.seed = seed
        self.resolution = as_size(resolution)
        self.urls = urls
        self.caption, self.crop, self.flip = caption, crop, flip
        self.features, self.max_bad = features, max_bad
        self.cache = cache_folder(cache)
        self.shards = local_files(urls, self.cache)
        self.order = Order(self._count_all(), seed=seed, window=window, shuffle=shuffle)
        self._open_most = 2 * window + 2
        self._indices: OrderedDict[int, tarindex.TarIndex] = OrderedDict()
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self.order)

    def __repr__(self) -> str:
        return f"WebDataset({self.urls!r}, shards={len(self.shards)}, samples={len(self)})"

    def __getstate__(self) -> dict[str, Any]:
        # open files do not travel to workers; indices would only make the message larger
        return self.__dict__ | {"_files": OrderedDict(), "_indices": OrderedDict()}

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    def sample(self, position: int) -> Sample:
        """The sample at this position; unreadable ones are passed over."""
        return first_readable(
            self.order.candidates(position), lambda place: self.read(place, position), max_bad=self.max_bad
        )

    def captions(self, count: int, held_out: bool = False) -> list[str]:
        """The readable captions of the first `count` positions; shards hold none back."""
        if held_out:
            raise ValueError("shards have no held-out captions; give prompts instead")
        captions = []
        for position in range(count):
            place = self.order[position]
            try:
                captions.append(self._caption(place.shard, self._index(place.shard).members(place.row)))
            except (OSError, ValueError):
                continue
        return captions

    def empty_features(self) -> tuple[np.ndarray, np.ndarray]:
        """Features (L, D) and mask (L,) of the empty caption, stored once beside the shards."""
        from safetensors.numpy import load_file

        file = self.shards[0].parent / f"empty.{FEATURES}"
        if not file.is_file():
            raise WrongInput(
                f"{file}: the empty caption's features are not there; pack the dataset with its encoder"
            )
        stored = load_file(file)
        return stored["features"], stored["mask"].astype(bool)

    def _count_all(self) -> list[int]:
        """The number of samples of each shard, after making the indices that are not there yet."""
        counts, damaged, told = [], [], False
        for number, shard in enumerate(self.shards):
            count = tarindex.lookup(shard, self.cache, tarindex.count)
            if count is None:
                if not told and len(self.shards) - number > 16:
                    left = len(self.shards) - number
                    print(f"indexing up to {left} shards into {self.cache}, once", file=sys.stderr)
                    told = True
                try:
                    count = len(tarindex.make(shard, self.cache))
                except (OSError, tarfile.TarError) as error:
                    damaged.append(f"{shard}: {error}")
                    continue
            counts.append(count)
        if damaged:
            more = "; ..." if len(damaged) > 3 else ""
            raise MdmkitError(
                f"{len(damaged)} of {len(self.shards)} shards cannot be read as plain tar files; fetch them "
                f"again or leave them out: {'; '.join(damaged[:3])}{more}"
            )
        if not sum(counts):
            raise MdmkitError(f"urls = {self.urls!r}: the shards hold no samples")
        return counts

    def _index(self, shard: int) -> tarindex.TarIndex:
        index = self._indices.get(shard)
        if index is None:
            index = tarindex.lookup(self.shards[shard], self.cache)
            if index is None:
                raise MdmkitError(f"{self.shards[shard]}: changed while it was in use; start again")
            self._indices[shard] = index
            if len(self._indices) > self._open_most:
                self._indices.popitem(last=False)
        return index

    def _file(self, shard: int) -> int:
        file = self._files.get(shard)
        if file is None:
            file = self._files[shard] = os.open(self.shards[shard], os.O_RDONLY | os.O_CLOEXEC)
            if len(self._files) > self._open_most:
                os.close(self._files.popitem(last=False)[1])
        return file

    def _bytes(self, shard: int, span: tuple[int, int]) -> bytes:
        at, size = span
        # no shared file position: safe in forked processes and threads
        data = os.pread(self._file(shard), size, at)
        if len(data) != size:
            raise OSError(f"expected {size} bytes at {at}, got {len(data)}")
        return data

    def picture_sizes(self) -> list[np.ndarray]:
        """(height, width) of every picture by shard, (0, 0) where it cannot be opened: read once, and kept.

        The smaller of what is stored and what json says of the original: what was enlarged before it was
        stored is no larger for it.
        """
        new = [shard for shard in self.shards if not sizes.kept_at(str(shard), self.cache).exists()]
        if len(new) > 16:
            print(f"reading the sizes of pictures of {len(new)} shards, once", file=sys.stderr)

        def of_shard(number: int) -> np.ndarray:
            def read() -> list[tuple[int, int]]:
                return [self._size(number, row) for row in range(int(self.order.sizes[number]))]

            shard = self.shards[number]
            return sizes.kept(sizes.kept_at(str(shard), self.cache), tarindex.state(shard), read)

        return [of_shard(number) for number in range(len(self.shards))]

    def _size(self, shard: int, row: int) -> tuple[int, int]:
        members = self._index(shard).members(row)
        try:
            data = self._bytes(shard, members[_largest(members)])
            stored = size = sizes.header_size(io.BytesIO(data))
            if "json" in members:
                size = original(json.loads(self._bytes(shard, members["json"])), stored)
        except (OSError, ValueError):
            return 0, 0
        return min(stored[0], size[0]), min(stored[1], size[1])

    def read(self, place: Place, position: int, resolution: tuple[int, int] | None = None) -> Sample:
        """The sample at a place, at the dataset's resolution or at another one; `position` draws the crop."""
        resolution = resolution or self.resolution
        index = self._index(place.shard)
        name = str(index.keys[place.row])
        key = f"{self.shards[place.shard].name}/{name}"
        members = index.members(place.row)
        features = mask = None
        try:
            span = members[_picture(members, resolution)]
            picture, size = decode(self._bytes(place.shard, span), at_least=2 * max(resolution))
            caption = self._caption(place.shard, members)
            if "json" in members:
                size = original(json.loads(self._bytes(place.shard, members["json"])), size)
            if self.features:
                features, mask = features_in(self._bytes(place.shard, span_of(members, FEATURES)))
        except Exception as error:  # decoders raise what they like on broken data
            raise Unreadable(key, f"{type(error).__name__}: {error}") from error
        image = fit(picture, resolution, crop=self.crop, flip=self.flip, key=(self.seed, position))
        return Sample(image, caption, key, size, features, mask)

    def _caption(self, shard: int, members: dict[str, tuple[int, int]]) -> str:
        if self.caption == "none":
            return ""
        member, _, field = self.caption.partition(".")
        text = self._bytes(shard, span_of(members, member)).decode("utf-8-sig")
        if field:
            value: Any = json.loads(text)
            for part in field.split("."):
                if not isinstance(value, dict) or part not in value:
                    raise ValueError(f"its {member} has no field {field!r}")
                value = value[part]
            text = "" if value is None else str(value)
        return text.strip()


def span_of(members: dict[str, tuple[int, int]], ext: str) -> tuple[int, int]:
    """Where a sample's member of this extension stands; ValueError where there is none."""
    if ext not in members:
        raise ValueError(f"it has no {ext} member (it has {', '.join(sorted(members))})")
    return members[ext]


PACKED = re.compile(r"(\d+)(?:x(\d+))?\.png")


def _picture(members: dict[str, tuple[int, int]], resolution: tuple[int, int]) -> str:
    """The member to decode: the smallest packed picture that reaches the resolution, else the whole one."""
    packed = []
    for ext in members:
        match = PACKED.fullmatch(ext)
        if match:
            h, w = int(match[1]), int(match[2] or match[1])
            # another aspect was cropped otherwise
            if h * resolution[1] == w * resolution[0] and h >= resolution[0]:
                packed.append((h, ext))
    if packed:
        return min(packed)[1]
    for ext in EXTENSIONS:
        if ext in members:
            return ext
    raise ValueError(f"it has no picture (it has {', '.join(sorted(members))})")


def _largest(members: dict[str, tuple[int, int]]) -> str:
    """The member with the picture at its largest: the whole one, else the largest packed one."""
    packed = [(int(match[1]), ext) for ext in members if (match := PACKED.fullmatch(ext))]
    for ext in (*EXTENSIONS, *(ext for _, ext in sorted(packed, reverse=True))):
        if ext in members:
            return ext
    raise ValueError("it has no picture")


def original(fields: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the original as json says it, else `size`."""
    if isinstance(fields, dict):
        for prefix in ("original_", ""):
            h, w = fields.get(f"{prefix}height"), fields.get(f"{prefix}width")
            if isinstance(h, int) and isinstance(w, int) and h > 0 and w > 0:
                return h, w
    return size


def features_in(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Text features (L, D) and mask (L,) of a sample's member."""
    from safetensors.numpy import load

    stored = load(data)
    return stored["features"], stored["mask"].astype(bool)
