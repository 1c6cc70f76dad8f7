"""Shard patterns to local files: braces, folders, remote URLs and pipes."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mdmkit.errors import MdmkitError, WrongInput

__all__ = ["cache_folder", "expand", "local_files", "locked"]


def cache_folder(cache: str | None) -> Path:
    """Where indices and fetched shards are kept: `cache`, or else the user's cache folder."""
    if cache is not None:
        return Path(cache).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "mdmkit"


def expand(urls: str) -> list[str]:
    """The shards that a pattern names: braces ("train-{000000..000041}.tar"), or a folder's .tar files."""
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise MdmkitError(f"reading shards needs webdataset ({error}); pip install 'mdmkit[data]'") from error
    if urls and "://" not in urls and Path(urls).expanduser().is_dir():
        return sorted(str(path) for path in Path(urls).expanduser().glob("*.tar"))
    try:
        return [url for url in expand_urls(urls) if url]
    except (ValueError, AssertionError) as error:  # an unbalanced brace; a ${NAME} that is not set
        raise WrongInput(f"urls = {urls!r}: {error}") from error


def local_files(urls: str, cache: Path) -> list[Path]:
    """The shards of a pattern as local files; remote ones and pipes are fetched whole into `cache`, once.

    What stands in the cache is not compared with its source again. A pipe runs a shell, so it is refused
    unless MDMKIT_ALLOW_PIPE=1 is set, as `--allow-pipe` does. WrongInput names the shards that are missing.
    """
    shards = expand(urls)
    if not shards:
        raise WrongInput(f"urls = {urls!r}: names no shard")
    if any(shard.startswith("pipe:") for shard in shards) and os.environ.get("MDMKIT_ALLOW_PIPE") != "1":
        raise WrongInput(
            f"urls = {urls!r}: a pipe runs a shell; say --allow-pipe on the command line to allow it"
        )
    files, missing = [], []
    for shard in shards:
        remote = shard.startswith("pipe:") or "://" in shard
        file = _cached(shard, cache) if remote else Path(shard).expanduser().absolute()
        try:
            if remote and not file.exists():
                _fetch(shard, file)
            elif not remote and not file.is_file():
                raise FileNotFoundError(shard)
        except FileNotFoundError:
            missing.append(shard)
        files.append(file)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise WrongInput(
            f"urls = {urls!r}: {len(missing)} of {len(shards)} shards are missing: "
            f"{', '.join(missing[:3])}{more}"
        )
    return files


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process of this machine at a time; the others wait."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise MdmkitError(
            f"{path.parent}: cannot be used as a cache: {error}; say another by cache = ..."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _cached(url: str, cache: Path) -> Path:
    name = url.rpartition("/")[2].partition("?")[0][-40:]
    name = "".join(c if c.isalnum() or c in ".-_" else "_" for c in name)
    return cache / "shards" / f"{blake2b(url.encode(), digest_size=8).hexdigest()}-{name}"


def _fetch(url: str, file: Path) -> None:
    try:
        with locked(file):
            if file.exists():  # another rank was first
                return
            aside = file.with_name(file.name + ".part")
            with _open(url) as source, open(aside, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            os.replace(aside, file)
    except FileNotFoundError:
        raise
    except MdmkitError:
        raise
    except Exception as error:  # each remote file system has exceptions of its own
        raise MdmkitError(f"{url}: cannot be fetched: {type(error).__name__}: {error}") from error


def _open(url: str) -> Any:
    if url.startswith("pipe:"):
        from webdataset.gopen import gopen

        return gopen(url, "rb")
    try:
        import fsspec
    except ImportError as error:
        raise MdmkitError(
            f"{url}: remote shards need fsspec ({error}); pip install 'mdmkit[data]'"
        ) from error
    return fsspec.open(url, "rb")
