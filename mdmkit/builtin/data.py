"""Settings and registrations of the built-in components: data. No torch."""

from __future__ import annotations

import attrs

from mdmkit.plugins.component import Component
from mdmkit.recipe.options import opt

__all__ = ["COMPONENTS", "FolderSettings", "WebDatasetSettings"]


@attrs.frozen
class FolderSettings:
    """Pictures in a folder, captions in .txt files, a table or the names of subfolders."""

    path: str = opt(help="the folder; pictures at any depth are taken")
    captions: str = opt(
        "auto",
        "txt: name.txt beside each picture; csv: a table; folders: class subfolders; auto: what is there",
        choices=("auto", "txt", "csv", "folders", "none"),
    )
    table: str | None = opt(None, "the CSV or TSV, relative to path; the only one there where not given")
    file_column: str = opt("file", "the table's column of pictures, relative to the table")
    caption_column: str = opt("caption", "the table's column of captions")
    crop: str = opt("center", "which part is kept where the aspect differs", choices=("center", "random"))
    flip: bool = opt(False, "mirror half of the pictures, drawn by position")
    shuffle: bool = opt(True, "an order of its own in every epoch; else by name")
    max_bad: int = opt(100, "stop after so many unreadable samples in a row", ge=1)


@attrs.frozen
class WebDatasetSettings:
    """WebDataset shards (tar files), local or remote, read at random through an index."""

    urls: str = opt(
        help='brace pattern such as "train-{000000..000041}.tar", several joined by ::, or a folder'
    )
    caption: str = opt("txt", "member that holds the caption, a json field such as json.caption, or none")
    crop: str = opt("center", "which part is kept where the aspect differs", choices=("center", "random"))
    flip: bool = opt(False, "mirror half of the pictures, drawn by position")
    shuffle: bool = opt(True, "permute shards and samples in every epoch; else in file order")
    window: int = opt(8, "shards among which samples are shuffled", ge=1)
    features: bool = opt(False, "read the text features that mdmkit pack has stored")
    cache: str | None = opt(None, "folder for indices and fetched shards; ~/.cache/mdmkit where not given")
    max_bad: int = opt(100, "stop after so many unreadable samples in a row", ge=1)


COMPONENTS: list[Component] = [
    Component("dataset", "folder", FolderSettings, "mdmkit.data.folder:Folder"),
    Component("dataset", "webdataset", WebDatasetSettings, "mdmkit.data.shards:WebDataset"),
]
