"""Batches: the same with any number of workers, and one line for whatever goes wrong in them."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.data import Batch, Sample
from mdmkit.data.loader import batches, collate
from mdmkit.data.shards import WebDataset
from mdmkit.errors import MdmkitError, WrongInput

from noise_dataset import Noise  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core


def _equal(a: Batch, b: Batch) -> bool:
    same = (a.captions, a.keys, a.positions, a.skipped) == (b.captions, b.keys, b.positions, b.skipped)
    return same and torch.equal(a.images, b.images) and torch.equal(a.sizes, b.sizes)


@given(positions=st.lists(st.lists(st.integers(0, 50), max_size=4), max_size=4))
def test_batches_hold_their_samples_in_order(positions):
    for batch, wanted in zip(batches(Noise(), positions), positions, strict=True):
        assert batch.positions == wanted
        assert len(batch) == len(wanted)
        assert batch.images.shape == (len(wanted), 3, 12, 8)
        assert batch.images.dtype == torch.uint8
        assert batch.sizes.tolist() == [[100 + i, 7] for i in wanted]
        assert len(batch.skipped) == wanted.count(33)
        for row, i in enumerate(wanted):
            assert np.array_equal(batch.images[row].permute(1, 2, 0).numpy(), Noise().sample(i).image)
            assert batch.captions[row] == Noise().sample(i).caption
            assert batch.keys[row] == f"n{i}"


@pytest.fixture(scope="module")
def alone() -> list[Batch]:
    return list(batches(Noise(), [[3 * step, 3 * step + 1, 3 * step + 2] for step in range(8)]))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(alone, workers):
    state = torch.get_rng_state()
    endless = ([3 * step, 3 * step + 1, 3 * step + 2] for step in itertools.count())
    read = batches(Noise(), endless, workers=workers)
    assert all(_equal(next(read), expected) for expected in alone)
    read.close()
    assert torch.equal(torch.get_rng_state(), state)


def test_real_files_through_workers(shards):
    dataset = WebDataset(seed=0, resolution=8, urls=shards, crop="random")
    positions = [[7 * step + i for i in range(7)] for step in range(6)]  # a batch holds the end of an epoch
    expected = list(batches(dataset, positions))
    assert all(map(_equal, batches(dataset, positions, workers=2), expected))
    # ranks take their parts of each batch, and a resumed run begins at a later step
    rank = list(
        batches(WebDataset(seed=0, resolution=8, urls=shards, crop="random"), [p[4:] for p in positions[2:]])
    )
    for part, whole in zip(rank, expected[2:], strict=True):
        assert torch.equal(part.images, whole.images[4:])
        assert part.captions == whole.captions[4:]


@pytest.mark.parametrize("workers", [0, 1])
def test_trouble_arrives_as_one_line(workers):
    read = batches(Noise(), [[1], [2, 100]], workers=workers)
    assert next(read).keys == ["n1"]
    with pytest.raises(WrongInput, match=r"^nothing here; look elsewhere$"):
        next(read)
    with pytest.raises(MdmkitError, match=r"^Noise at position 101: KeyError: 'two\\nlines'$") as raised:
        next(batches(Noise(), [[101]], workers=workers))
    assert "Traceback" in str(raised.value.__cause__)


def test_a_killed_worker_is_one_line():
    with pytest.raises(MdmkitError, match=r"^a data worker stopped: DataLoader worker \(pid.*\)[^\n]*$"):
        list(batches(Noise(), [[102]], workers=1))


def test_workers_leave_interrupts_to_the_main_process():
    assert next(batches(Noise(), [[103]], workers=1)).keys == ["n103"]


def test_a_dataset_that_cannot_travel_says_so():
    class Local(Noise):
        pass

    with pytest.raises(MdmkitError, match=r"Local cannot be sent to data workers: .*; say workers = 0"):
        next(batches(Local(), [[1]], workers=1))


def test_leaving_early_leaves_no_process_behind():
    code = (
        "import torch.multiprocessing as mp, multiprocessing.process as p\n"
        "from mdmkit.data.loader import batches\n"
        "from mdmkit.data.folder import Folder\n"
        "import sys, pathlib, tempfile\n"
        "from PIL import Image\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    Image.new('RGB', (4, 4)).save(pathlib.Path(folder) / 'a.png')\n"
        "    data = Folder(seed=0, resolution=4, path=folder, captions='none')\n"
        "    read = batches(data, ([i] for i in range(10**9)), workers=2)\n"
        "    next(read)\n"
        "    read.close()\n"
        "    print(len(mp.active_children()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_features_are_padded_and_masked():
    image = np.zeros((2, 2, 3), np.uint8)
    samples = [
        Sample(image, "", "a", (2, 2), np.ones((1, 4), np.float16), np.zeros(1, bool)),
        Sample(image, "", "b", (2, 2), np.full((3, 4), 2, np.float16), np.array([True, True, False])),
        Sample(image, "", "c", (2, 2), np.full((2, 4), 3, np.float16)),
    ]
    batch = collate(samples, [0, 1, 2], (2, 2))
    assert batch.features is not None
    assert batch.features_mask is not None
    assert batch.features.dtype == torch.float16
    assert batch.features[..., 0].tolist() == [[1, 0, 0], [2, 2, 2], [3, 3, 0]]
    assert batch.features_mask.tolist() == [[False] * 3, [True, True, False], [True, True, False]]


def test_samples_that_do_not_belong_together():
    image = np.zeros((2, 2, 3), np.uint8)
    with_features = Sample(image, "", "a", (2, 2), np.ones((1, 4), np.float16))
    with pytest.raises(ValueError, match="1 of 2 samples have text features; expected all or none"):
        collate([with_features, Sample(image, "", "b", (2, 2))], [0, 1], (2, 2))
    with pytest.raises(
        ValueError, match=r"b: expected a uint8 image of shape \(4, 4, 3\), got uint8 \(2, 2, 3\)"
    ):
        collate([Sample(image, "", "b", (2, 2))], [0], (4, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_batches():
    batch = next(batches(Noise(), [[1, 2]], pin_memory=True))
    assert batch.images.is_pinned()
    assert _equal(batch, next(batches(Noise(), [[1, 2]])))


def clip(frames: int | None, *, fps: float | None = None, side: int = 4) -> Sample:
    shape = (side, side, 3) if frames is None else (frames, side, side, 3)
    image = np.arange(np.prod(shape), dtype=np.int64).reshape(shape).astype(np.uint8)
    return Sample(image, "a clip", "k", (4, 4), fps=fps)


@given(st.integers(1, 5), st.integers(1, 3))
def test_clips_have_frames_behind_channels(frames, rows):
    batch = collate([clip(frames, fps=8.0)] * rows, range(rows), (4, 4))
    assert batch.images.shape == (rows, 3, frames, 4, 4)
    assert np.array_equal(batch.images[0].permute(1, 2, 3, 0).numpy(), clip(frames).image)
    assert batch.fps is not None
    assert batch.fps.tolist() == [8.0] * rows
    half = batch.rows(0, 1)
    assert half.fps is not None
    assert torch.equal(half.images, batch.images[:1])
    assert len(half.fps) == 1


def test_a_clip_without_a_rate_and_a_picture():
    clips = collate([clip(2), clip(2, fps=5.0)], [0, 1], (4, 4))
    assert clips.fps is not None
    assert clips.fps.tolist() == [0.0, 5.0]
    assert collate([clip(None)], [0], (4, 4)).fps is None


@pytest.mark.parametrize(
    "others", [[clip(2), clip(3)], [clip(None), clip(2)], [clip(2), clip(None)], [clip(2, side=5)]]
)
def test_a_batch_is_of_one_shape(others):
    with pytest.raises(ValueError, match=r"k: expected a uint8 image of shape \(.*4, 4, 3\), got uint8"):
        collate(others, range(len(others)), (4, 4))
