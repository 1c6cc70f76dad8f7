"""A run folder: what it holds, who may write to it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mdmkit.errors import MdmkitError, WrongInput

__all__ = [
    "GROW_NOW",
    "RECIPE",
    "RESOLVED",
    "RUN",
    "Lock",
    "create",
    "forget_growth",
    "free_name",
    "grow_asked",
    "growth_taken",
    "in_use",
    "one_line_disk_errors",
    "refuse_full",
    "refuse_taken",
    "replace_file",
]

RECIPE, RESOLVED, RUN = "recipe.toml", "recipe.resolved.toml", "run.toml"
GROW_NOW = "grow-now"  # there while somebody asks that the stage of growth ends


def free_name(parent: Path, stem: str) -> Path:
    """`parent/stem`, or `parent/stem-2`, ... : the first that does not exist yet."""
    number = 1
    while (path := parent / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return path


def refuse_taken(folder: Path) -> None:
    """Nothing, where a run may be made in this folder.

    Raises:
        WrongInput: it holds a run already, or something else.
    """
    if (folder / RESOLVED).exists():
        raise WrongInput(
            f"{folder} holds a run already; go on with it by --resume {folder}, or name another --out"
        )
    refuse_full(folder)


def refuse_full(folder: Path) -> None:
    """Nothing, where a folder can be made without losing what stands there.

    Raises:
        WrongInput: something stands there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WrongInput(f"{folder} exists and is not an empty folder; name another --out")


def create(folder: Path, files: Mapping[str, str]) -> None:
    """Make a run folder and write its first files.

    Raises:
        WrongInput: it is taken, or cannot be made.
    """
    try:
        refuse_taken(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise WrongInput(f"the run folder {folder} cannot be written: {error}") from error


@contextlib.contextmanager
def one_line_disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a disk refuses (full, over quota, read-only, broken) into one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES):
            raise
        where = error.filename or folder
        raise MdmkitError(
            f"{where} cannot be written: {error.strerror}; make room and go on with --resume {folder}"
        ) from error


class Lock:
    """Holds a run folder for one process; the system lets go of it when the process dies, however it dies."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        try:
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise WrongInput(f"the run folder {folder} cannot be written: {error}") from error
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self.handle, 64).decode(errors="replace").strip()
            os.close(self.handle)
            raise WrongInput(
                f"{folder} is in use by another process ({holder or 'unknown'}); "
                "wait for it, or stop it first"
            ) from None
        os.ftruncate(self.handle, 0)
        os.write(self.handle, f"pid {os.getpid()}\n".encode())

    def release(self) -> None:
        """Let go of the folder."""
        os.close(self.handle)


def in_use(folder: Path) -> bool:
    """Whether a process holds the run folder."""
    try:
        Lock(folder).release()
    except WrongInput:
        return True
    return False


def grow_asked(run_dir: Path, step: int) -> bool:
    """Whether the stage is to end with this step because somebody asked: a file `grow-now` in the run folder.

    The step of the decision is written into it before anything else happens, so that a run that is killed
    before its checkpoint, and resumed from an earlier one, ends the stage at the same step.
    """
    path = run_dir / GROW_NOW
    if not path.exists():
        return False
    said = path.read_text(encoding="utf-8").strip()
    if not said:
        replace_file(path, str(step).encode())
    return not said or step >= int(said)


def forget_growth(run_dir: Path, step: int) -> None:
    """Take away a decision that a checkpoint has seen: the run was killed before it was taken away there."""
    path = run_dir / GROW_NOW
    if path.exists() and int(path.read_text(encoding="utf-8").strip() or step + 1) <= step:
        path.unlink()


def growth_taken(run_dir: Path) -> None:
    """Take away a decision that is carried out."""
    (run_dir / GROW_NOW).unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Give a small file new contents, on the disk, whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
