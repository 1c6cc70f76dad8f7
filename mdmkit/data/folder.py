"""Pictures in a folder, with captions beside them, in a table, or from the names of subfolders."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import numpy as np

from mdmkit.errors import WrongInput
from mdmkit.streams import key_bytes

from . import sizes
from .fetch import cache_folder
from .order import Order, Place
from .pictures import EXTENSIONS, as_size, decode, fit
from .sample import Sample, Unreadable, first_readable

__all__ = ["Folder"]


class Folder:
    """Pictures under `path`, at any depth, shuffled anew in every epoch.

    `captions`: "txt" reads `name.txt` beside each picture; "csv" reads a CSV or TSV with a header and
    columns `file_column` (relative to the table) and `caption_column`, namely `table`, or else the only one
    in the folder; "folders" takes the name of the first subfolder as caption; "none" gives every picture
    the empty caption; "auto" takes a table where there is one, .txt files where there are any, and else
    subfolders.

    WrongInput where the folder, pictures or captions are missing.
    """

    # what stands in the folder; folders of clips have others
    things, extensions = "pictures", EXTENSIONS

    def __init__(
        self,
        *,
        seed: int,
        resolution: int | tuple[int, int],
        path: str,
        captions: str = "auto",
        table: str | None = None,
        file_column: str = "file",
        caption_column: str = "caption",
        crop: str = "center",
        flip: bool = False,
        shuffle: bool = True,
        max_bad: int = 100,
    ) -> None:
        self.seed = seed
        self.resolution = as_size(resolution)
        self.root = Path(path).expanduser().absolute()
        self.crop, self.flip, self.max_bad = crop, flip, max_bad
        if not self.root.is_dir():
            raise WrongInput(f"{path}: expected a folder of {self.things}, found {_kind(self.root)}")
        names = _walk(self.root)
        found = self._found(names)
        tables = [name for name in names if "/" not in name and _suffix(name) in ("csv", "tsv")]
        if captions == "auto":
            captions = "csv" if table or tables else self._guess(names, found, path)
        self.captions_from = captions
        self.table: dict[str, str] = {}
        if captions == "csv":
            where = self.root / (table or _only(tables, path))
            self.table = _read_table(where, self.root, file_column, caption_column)
            self.files = sorted(self.table)
            _refuse(
                path,
                "named in the table but not there",
                [f for f in self.files if not self._is_there(f)],
                self.things,
            )
        elif captions in ("txt", "folders", "none"):
            self.files = found
        else:
            raise ValueError(f'expected captions "auto", "txt", "csv", "folders" or "none", got {captions!r}')
        if not self.files:
            raise WrongInput(f"{path}: found no {self.things} ({', '.join(self.extensions)})")
        self.texts: dict[str, str] = {}
        if captions == "txt":
            texts = {name[: -len(".txt")]: name for name in names if _suffix(name) == "txt"}
            stems = {name: self._stem(name) for name in self.files}
            _refuse(
                path,
                "without a .txt beside them",
                [name for name, stem in stems.items() if stem not in texts],
                self.things,
            )
            self.texts = {name: texts[stem] for name, stem in stems.items()}
        if captions == "folders":
            outside = [name for name in self.files if "/" not in name]
            _refuse(path, "outside of any class folder", outside, self.things)
        self.order = Order([len(self.files)], seed=seed, shuffle=shuffle)

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        name, things = type(self).__name__, self.things
        return f"{name}({str(self.root)!r}, {things}={len(self)}, captions={self.captions_from!r})"

    def sample(self, position: int) -> Sample:
        """The sample at this position; unreadable ones are passed over."""
        return first_readable(
            self.order.candidates(position), lambda place: self.read(place, position), max_bad=self.max_bad
        )

    def captions(self, count: int, held_out: bool = False) -> list[str]:
        """The captions of the first `count` positions; a folder holds none back."""
        if held_out:
            raise ValueError("a folder has no held-out captions; give prompts instead")
        return [self._caption(self.files[self.order[position].row]) for position in range(count)]

    def class_names(self) -> list[str]:
        """Every different caption of class subfolders, sorted."""
        return sorted({self._caption(name) for name in self.files}) if self.captions_from == "folders" else []

    def read(self, place: Place, position: int, resolution: tuple[int, int] | None = None) -> Sample:
        """The sample at a place, at the dataset's resolution or at another one; `position` draws the crop."""
        resolution = resolution or self.resolution
        name = self.files[place.row]
        try:
            picture, size = decode((self.root / name).read_bytes(), at_least=2 * max(resolution))
            caption = self._caption(name)
        except Exception as error:  # decoders raise what they like on broken data
            raise Unreadable(name, f"{type(error).__name__}: {error}") from error
        image = fit(picture, resolution, crop=self.crop, flip=self.flip, key=(self.seed, position))
        return Sample(image=image, caption=caption, key=name, size=size)

    def picture_sizes(self) -> list[np.ndarray]:
        """(height, width) of every picture, (0, 0) where it cannot be opened: read once, and kept."""
        files = [self.root / name for name in self.files]
        status = [file.stat() for file in files]
        states = [f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in zip(self.files, status, strict=True)]

        def read() -> list[tuple[int, int]]:
            if len(files) > 20_000:
                print(f"reading the sizes of {len(files):,} pictures of {self.root}, once", file=sys.stderr)
            return [sizes.header_size(file) for file in files]

        where = sizes.kept_at(str(self.root), cache_folder(None))
        return [sizes.kept(where, key_bytes(tuple(states)).hex(), read)]

    def _found(self, names: list[str]) -> list[str]:
        """The things among all files, by name."""
        return [name for name in names if _suffix(name) in self.extensions]

    def _stem(self, name: str) -> str:
        """What a caption's file is called, without .txt."""
        return name.rpartition(".")[0]

    def _is_there(self, name: str) -> bool:
        return (self.root / name).is_file()

    def _guess(self, names: list[str], found: list[str], path: str) -> str:
        if any(_suffix(name) == "txt" for name in names):
            return "txt"
        if found and all("/" in name for name in found):
            return "folders"
        if not found:
            raise WrongInput(f"{path}: found no {self.things} ({', '.join(self.extensions)})")
        raise WrongInput(
            f"{path}: found no captions; add a .txt beside each of the {self.things}, a CSV with columns "
            'file and caption, or class subfolders, or say captions = "none"'
        )

    def _caption(self, name: str) -> str:
        if self.captions_from == "txt":
            return (self.root / self.texts[name]).read_text("utf-8-sig").strip()
        if self.captions_from == "csv":
            return self.table[name]
        return name.partition("/")[0] if self.captions_from == "folders" else ""


def _walk(root: Path) -> list[str]:
    """Every file under `root` by its relative path, sorted, so that all machines number them alike."""
    names = []
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link back up
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(root)
        names += [(inside / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(names)


def _only(tables: list[str], path: str) -> str:
    if len(tables) != 1:
        found = f"found {len(tables)} ({', '.join(tables)})" if tables else "found none"
        raise WrongInput(
            f"{path}: expected one .csv or .tsv in the folder, {found}; say which by table = ..."
        )
    return tables[0]


def _read_table(where: Path, root: Path, file_column: str, caption_column: str) -> dict[str, str]:
    """Pictures by path relative to the root, with their captions; a picture named twice is an error."""
    captions: dict[str, str] = {}
    try:
        with open(where, encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, delimiter="\t" if _suffix(where.name) == "tsv" else ",")
            for column in (file_column, caption_column):
                if column not in (rows.fieldnames or ()):
                    known = ", ".join(rows.fieldnames or ()) or "none"
                    raise WrongInput(
                        f"{where}: expected a header with column {column!r}, got columns: {known}"
                    )
            for row in rows:
                if row[file_column] is None or row[caption_column] is None:
                    raise WrongInput(
                        f"{where}:{rows.line_num}: expected {len(rows.fieldnames or ())} columns, got fewer"
                    )
                name = os.path.relpath(where.parent / row[file_column], root).replace(os.sep, "/")
                if name in captions:
                    raise WrongInput(f"{where}:{rows.line_num}: {row[file_column]} is named twice")
                captions[name] = row[caption_column].strip()
    except FileNotFoundError:
        raise WrongInput(f"{where}: the table of captions is not there") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise WrongInput(f"{where}: cannot be read as UTF-8 CSV: {error}") from error
    return captions


def _refuse(path: str, fault: str, names: list[str], things: str) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise WrongInput(f"{path}: {len(names)} {things} {fault}: {', '.join(names[:3])}{more}")


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "nothing"
