"""Datasets: samples by global position, so that ranks, workers and restarts need no state.

`folder.Folder`, `shards.WebDataset` and `shapes.Shapes` are datasets, `loader.batches` reads one into
batches of tensors, `pack.pack` writes one as shards.
"""

from .sample import Batch, Dataset, Sample, Unreadable, first_readable

__all__ = ["Batch", "Dataset", "Sample", "Unreadable", "first_readable"]
