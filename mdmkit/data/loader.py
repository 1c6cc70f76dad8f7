"""Datasets to batches of tensors, read ahead by worker processes that change no number."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Generator, Iterable, Sequence
from multiprocessing import forkserver, get_context, parent_process
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from mdmkit.errors import MdmkitError

from .sample import Batch, Dataset, Sample

__all__ = ["batches", "collate"]


def batches(
    dataset: Dataset,
    positions_by_step: Iterable[Sequence[int]],
    *,
    workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """One batch for each list of positions, in their order, the same with any number of workers.

    A run that goes on at another step gives the positions from that step on. `positions_by_step` may be
    endless; it is read ahead by `workers * prefetch` steps. Close the iterator (or use it up) to stop the
    workers. MdmkitError, in one line, for whatever goes wrong in the dataset.
    """
    loader = DataLoader(
        _Reader(dataset),  # type: ignore[arg-type]  # DataLoader only asks for __getitem__
        batch_sampler=positions_by_step,  # type: ignore[arg-type]  # any iterable of lists
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        # forking after torch has started threads can hang, and ends CUDA
        multiprocessing_context=_context() if workers else None,
        worker_init_fn=_start_worker if workers else None,
        pin_memory=pin_memory and torch.accelerator.is_available(),
        # else it would draw a seed from torch's global stream
        generator=torch.Generator(),
    )
    try:
        with warnings.catch_warnings():
            # torch warns at length before the error that is said below in one line
            warnings.filterwarnings("ignore", "Got pickle error", UserWarning)
            iterator = iter(loader)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        if not workers:
            raise
        name = type(dataset).__name__
        raise MdmkitError(f"{name} cannot be sent to data workers: {error}; say workers = 0") from error
    try:
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                # killed, out of memory or of shared memory
                raise MdmkitError(f"a data worker stopped: {str(error).splitlines()[0]}") from error
            if isinstance(item, _Failure):
                raise item.kind(item.line) from (RuntimeError(item.trace) if item.trace else None)
            yield item
    finally:
        if workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # a traceback may keep it alive
            for worker in iterator._workers:  # type: ignore[attr-defined]
                if worker.is_alive():  # stuck in a read, and deaf to SIGTERM
                    worker.kill()


def collate(samples: Sequence[Sample], positions: Sequence[int], resolution: tuple[int, int]) -> Batch:
    """Samples as one batch; features are padded to the longest with zeros that the mask leaves out."""
    images = _images(samples, resolution)
    with_features = [sample for sample in samples if sample.features is not None]
    if len(with_features) not in (0, len(samples)):
        raise ValueError(
            f"{len(with_features)} of {len(samples)} samples have text features; expected all or none"
        )
    features = mask = None
    if with_features:
        features, mask = _padded(samples)
    return Batch(
        images=images,
        captions=[sample.caption for sample in samples],
        sizes=torch.tensor([sample.size for sample in samples], dtype=torch.int64).reshape(-1, 2),
        keys=[sample.key for sample in samples],
        positions=[int(position) for position in positions],
        skipped=[bad for sample in samples for bad in sample.skipped],
        features=features,
        features_mask=mask,
        fps=torch.tensor([sample.fps or 0.0 for sample in samples]) if images.ndim == 5 else None,
    )


def _images(samples: Sequence[Sample], resolution: tuple[int, int]) -> torch.Tensor:
    """Pictures (B, 3, H, W) or clips (B, 3, F, H, W), uint8; all samples are of one kind."""
    first = samples[0].image.shape if samples else ()
    frames = first[:1] if len(first) == 4 else ()
    images = torch.empty((len(samples), 3, *frames, *resolution), dtype=torch.uint8)
    for row, sample in enumerate(samples):
        if sample.image.shape != (*frames, *resolution, 3) or sample.image.dtype != np.uint8:
            raise ValueError(
                f"{sample.key}: expected a uint8 image of shape {(*frames, *resolution, 3)}, got "
                f"{sample.image.dtype} {sample.image.shape}"
            )
        images[row] = torch.from_numpy(np.ascontiguousarray(sample.image)).movedim(-1, 0)
    return images


def _padded(samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [(np.asarray(sample.features), sample.features_mask) for sample in samples]
    longest = max(len(features) for features, _ in pairs)
    padded = np.zeros((len(pairs), longest, pairs[0][0].shape[1]), pairs[0][0].dtype)
    mask = np.zeros((len(pairs), longest), bool)
    for row, (features, real) in enumerate(pairs):
        padded[row, : len(features)] = features
        mask[row, : len(features)] = True if real is None else real
    return torch.from_numpy(padded), torch.from_numpy(mask)


class _Failure:
    """What a worker sends instead of a batch: torch would paste its traceback into the message."""

    def __init__(self, kind: type[MdmkitError], line: str, trace: str = "") -> None:
        self.kind, self.line, self.trace = kind, line, trace


class _Reader:
    """The dataset as DataLoader wants it: a whole batch by its positions."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, position: int) -> Any:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> Batch | _Failure:
        position = None
        try:
            samples = []
            for position in positions:
                samples.append(self.dataset.sample(int(position)))
            return collate(samples, positions, self.dataset.resolution)
        except MdmkitError as error:
            return _Failure(type(error), str(error))
        except Exception as error:
            where = f"{type(self.dataset).__name__} at position {position}"
            cause = " ".join(str(error).split())
            return _Failure(MdmkitError, f"{where}: {type(error).__name__}: {cause}", traceback.format_exc())


def _as_is(batch: Any) -> Any:
    return batch


def _context() -> Any:
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "mdmkit.data.loader"])  # imported once, not by every worker
    # Ctrl-C, and what ends a job, reach every process of a group; the main process stops the others when it
    # has saved. The fork server inherits the blocked signals, and so do its workers, from their start
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _start_worker(_: int) -> None:
    # the fork server may have been started by others, with no signal blocked
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # torch looks whether a worker's parent lives, but that is the fork server, which waits for its workers in
    # turn: after kill -9 of the main process both would stay for ever
    threading.Thread(target=_end_with_main, daemon=True).start()


def _end_with_main() -> None:
    main = parent_process()
    if main is not None:
        # a pipe that closes with the main process: its pid would stay for as long as nobody has waited for it
        main.join()
        os._exit(1)
