"""A small network that reads words off pictures: features for distances, learned from the data's captions."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mdmkit.data.sample import Dataset, Sample
from mdmkit.streams import seed_of, stream

__all__ = ["WordsNet", "learn", "load", "save"]

KEPT_APART = 8  # one sample in so many is never trained on
FORMAT = "mdmkit words 1"


class WordsNet(nn.Module):
    """Convolutions, an average over the picture (the features), and one logit for each of `words`.

    `side`: of the pictures that it was made for; others are resized to that. `width`: of its first layer.
    """

    def __init__(self, words: Sequence[str], *, side: int, width: int = 32) -> None:
        super().__init__()
        self.words, self.side, self.width = tuple(words), side, width
        layers: list[nn.Module] = []
        channels = (3, width, *(2 * width,) * 4)
        # 33 pixels decide on what stands in one place of the last layer: as much as a small picture has
        for i, stride in enumerate((1, 2, 2, 2, 1)):
            layers.append(nn.Conv2d(channels[i], channels[i + 1], 3, stride, 1))
            layers += [nn.GroupNorm(8, channels[i + 1]), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * width, len(self.words))

    def features(self, pictures: Tensor) -> Tensor:
        """(B, 2 width) of pictures (B, 3, H, W) in [-1, 1]."""
        size = (self.side, self.side)
        if pictures.shape[2:] != size:
            shrinks = min(pictures.shape[2:]) >= self.side
            mode = "area" if shrinks else "bilinear"
            pictures = F.interpolate(pictures, size, mode=mode)
        return self.body(pictures).mean((2, 3))

    def forward(self, pictures: Tensor) -> Tensor:
        """The logit of each word, (B, words)."""
        return self.head(self.features(pictures))


def learn(
    dataset: Dataset,
    *,
    pictures: int = 4096,
    steps: int = 600,
    batch: int = 64,
    lr: float = 3e-3,
    most: int = 64,
    seed: int = 0,
) -> tuple[WordsNet, dict[str, float]]:
    """A network that tells which of the commonest words stand in a picture's caption, and how well it does.

    It sees the first `pictures` samples (of data with an end, at most those), but one in eight, by its key,
    which is kept for the measure: `accuracy`, the share of those pictures with all words right; `recall`,
    the share of the captions' words that it finds; `precision`, of its words that are there; `pictures`.
    A function of its arguments on the same CPU and threads. `most`: words at most.

    Raises ValueError where the captions have no words that tell pictures apart.
    """
    known = min(pictures, len(dataset)) if hasattr(dataset, "__len__") else pictures  # type: ignore[arg-type]
    samples = {sample.key: sample for sample in map(dataset.sample, range(known))}
    apart = [sample for key, sample in samples.items() if zlib.crc32(key.encode()) % KEPT_APART == 0]
    shown = [sample for key, sample in samples.items() if zlib.crc32(key.encode()) % KEPT_APART]
    words = telling([sample.caption for sample in shown], most)
    if not words or not apart:
        raise ValueError(
            f"expected captions with words that tell pictures apart, and some to try them on, got "
            f"{len(words)} words in {len(shown)} captions and {len(apart)} others; give more pictures"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "words"))
        net = WordsNet(words, side=min(dataset.resolution))
    x, said = tensors(shown, words)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for step in range(steps):
        u = torch.from_numpy(stream(seed, step, "words").random(batch))
        rows = (u * len(x)).long()
        F.binary_cross_entropy_with_logits(net(x[rows].float() / 127.5 - 1), said[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    net.eval().requires_grad_(False)
    return net, measured(net, *tensors(apart, words))


def telling(captions: Sequence[str], most: int) -> tuple[str, ...]:
    """The commonest words of three letters or more that stand in 1 to 90 percent of captions."""
    counts = Counter(word for caption in captions for word in words_of(caption))
    some = [word for word, n in counts.items() if 0.01 <= n / len(captions) <= 0.9 and len(word) > 2]
    return tuple(sorted(some, key=lambda word: (-counts[word], word))[:most])


def words_of(caption: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", caption.lower()))


def tensors(samples: Sequence[Sample], words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Pictures, uint8 (B, 3, H, W), and which words each caption has, (B, words) of 0 and 1."""
    images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
    there = [[float(word in words_of(sample.caption)) for word in words] for sample in samples]
    return images.contiguous(), torch.tensor(there)


@torch.no_grad()
def measured(net: WordsNet, images: Tensor, said: Tensor) -> dict[str, float]:
    """How often the network reads rightly."""
    found = torch.cat([net(part.float() / 127.5 - 1) > 0 for part in images.split(64)])
    there = said > 0
    both = (found & there).sum().item()
    return {
        "accuracy": (found == there).all(1).float().mean().item(),
        "recall": both / max(there.sum().item(), 1),
        "precision": both / max(found.sum().item(), 1),
        "pictures": float(len(images)),
    }


def save(path: Path, net: WordsNet, facts: Mapping[str, Any]) -> None:
    """Write a network with what is known of it; `facts` are numbers and texts."""
    told = {"words": net.words, "side": net.side, "width": net.width, "facts": dict(facts)}
    save_file(net.state_dict(), path, {"format": FORMAT, "told": json.dumps(told)})


def load(path: Path | str) -> tuple[WordsNet, dict[str, Any]]:
    """The network of a file, and the facts beside it.

    Raises ValueError where there is none.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as weights of words: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"expected a file of {FORMAT!r}, got {path}; make one by `mdmkit.evaluate.words`")
    told = json.loads(metadata["told"])
    net = WordsNet(told["words"], side=told["side"], width=told["width"])
    net.load_state_dict(stored)
    return net.eval().requires_grad_(False), told["facts"]
