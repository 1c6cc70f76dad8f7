"""Text features on disk, a file a caption: what a frozen encoder has encoded once is read from then on."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["FeatureStore"]

FORMAT = 1  # goes up when the same encoder and caption would be stored otherwise


class FeatureStore:
    """Features (L, D) by caption, of one encoder, in `folder/<hash of the encoder>/<hash of the caption>`.

    `encoder` says everything that the features depend on. Several processes may read and write at once. A
    file that cannot be read counts in `damaged` and is as good as none; one that cannot be written in
    `unwritten`. Either is said on stderr once.
    """

    def __init__(self, folder: str | Path, encoder: str) -> None:
        self.encoder = encoder
        self.folder = Path(folder).expanduser().absolute() / _hash(f"{FORMAT}\n{encoder}")[:32]
        self.damaged = self.unwritten = 0

    def path(self, caption: str) -> Path:
        """Where a caption's features stand."""
        name = _hash(caption)
        return self.folder / name[:2] / f"{name}.safetensors"

    def get(self, caption: str) -> tuple[Tensor, bool] | None:
        """Features (L, D) as they were stored, and whether the caption was cut; None where there are none."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.path(caption)
        try:
            stored = load(path.read_bytes())
            features, cut = stored["features"], stored["cut"]
            if features.ndim != 2 or not len(features) or cut.shape != (1,):
                raise ValueError(f"has features {tuple(features.shape)}")
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            self.damaged += 1
            if self.damaged == 1:
                cause = " ".join(str(error).split())
                print(
                    f"{path} cannot be read ({cause}); such captions are encoded again", file=sys.stderr
                )
            return None
        return features, bool(cut)

    def put(self, caption: str, features: Tensor, cut: bool) -> None:
        """Store features (L, D); they are there whole or not at all."""
        from safetensors.torch import save

        path = self.path(caption)
        aside = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
        data = save({"features": features.cpu().contiguous(), "cut": torch.tensor([cut])})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                aside.write_bytes(data)
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            self.unwritten += 1
            if self.unwritten == 1:
                print(
                    f"{self.folder}: text features cannot be kept here ({error.strerror}); "
                    "captions are encoded each time",
                    file=sys.stderr,
                )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
