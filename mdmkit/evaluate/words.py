"""A small network that reads words off pictures or clips: features for distances, learned from captions."""

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
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from mdmkit.data.sample import Dataset, Sample
from mdmkit.streams import seed_of, stream
from mdmkit.train.folder import replace_file

__all__ = ["WordsNet", "learn", "load", "save"]

KEPT_APART = 8  # one sample in so many is never trained on
FORMAT = "mdmkit words 1"
LATER = ("then", "before", "after")  # they say which of two things comes first


class WordsNet(nn.Module):
    """Convolutions, an average over what is left (the features), and one logit for each of `words`.

    `side`: of the pictures that it was made for; others are resized to that. `width`: of its first layer.
    `frames`: of the clips that it was made for, None for pictures; of clips of another number those are taken
    that show the same moments, a clip beginning at 0 and lasting to 1. The convolutions run along time too,
    and make it as coarse as they make space: what follows what is told apart before anything is averaged.
    """

    def __init__(
        self, words: Sequence[str], *, side: int, width: int = 32, frames: int | None = None
    ) -> None:
        super().__init__()
        self.words, self.side, self.width, self.frames = tuple(words), side, width, frames
        conv = nn.Conv2d if frames is None else nn.Conv3d
        layers: list[nn.Module] = []
        channels = (3, width, *(2 * width,) * 4)
        # 33 pixels (and frames) decide on what stands in one place of the last layer: as many as a small
        # picture has
        for i, stride in enumerate((1, 2, 2, 2, 1)):
            layers.append(conv(channels[i], channels[i + 1], 3, stride, 1))
            layers += [nn.GroupNorm(8, channels[i + 1]), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * width, len(self.words))

    def features(self, pictures: Tensor) -> Tensor:
        """(B, 2 width) of pictures (B, 3, H, W) or clips (B, 3, F, H, W) in [-1, 1]."""
        axes = "H, W" if self.frames is None else "F, H, W"
        if pictures.ndim != 2 + len(axes.split(",")):
            raise ValueError(
                f"the network of words was learned from (B, 3, {axes}), got {tuple(pictures.shape)}; "
                "learn one from the same data"
            )
        return self.body(self.sized(pictures)).flatten(2).mean(2)

    def sized(self, x: Tensor) -> Tensor:
        """Pictures or clips at the network's size."""
        if self.frames is not None and x.shape[2] != self.frames:
            x = x[:, :, torch.arange(self.frames, device=x.device) * x.shape[2] // self.frames]
        size = (self.side, self.side)
        if x.shape[-2:] == size:
            return x
        mode = "area" if min(x.shape[-2:]) >= self.side else "bilinear"
        by_frame = x.movedim(1, -3)
        rows = F.interpolate(by_frame.flatten(0, -4), size, mode=mode)
        return rows.unflatten(0, by_frame.shape[:-3]).movedim(-3, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """The logit of each word, (B, words)."""
        return self.head(self.features(pictures))


def learn(
    dataset: Dataset,
    *,
    pictures: int = 4096,
    steps: int | None = None,
    batch: int | None = None,
    lr: float = 3e-3,
    most: int = 64,
    seed: int = 0,
) -> tuple[WordsNet, dict[str, float]]:
    """A network that tells which of the commonest words stand in a picture's caption, and how well it does.

    It sees the first `pictures` samples (of data with an end, at most those), but one in eight, by its key,
    which is kept for the measure: `accuracy`, the share of those pictures with all words right; `recall`,
    the share of the captions' words that it finds; `precision`, of its words that are there; `pictures`.
    Of data of clips it learns the words of clips, and which of them tell of what comes later, as `words_of`
    has them; `clips` is how many it was measured on. A function of its arguments on the same CPU and threads.
    `steps` and `batch`: 600 of 64 where not given, of clips, whose captions say more, 1800 of 32. `most`:
    words at most.

    Raises ValueError where the captions have no words that tell pictures apart.
    """
    known = min(pictures, len(dataset)) if hasattr(dataset, "__len__") else pictures  # type: ignore[arg-type]
    samples = {sample.key: sample for sample in map(dataset.sample, range(known))}
    apart = [sample for key, sample in samples.items() if zlib.crc32(key.encode()) % KEPT_APART == 0]
    shown = [sample for key, sample in samples.items() if zlib.crc32(key.encode()) % KEPT_APART]
    frames = next((len(sample.image) for sample in shown if sample.image.ndim == 4), None)
    in_time = frames is not None
    words = telling([sample.caption for sample in shown], most, in_time=in_time)
    if not words or not apart:
        raise ValueError(
            f"expected captions with words that tell pictures apart, and some to try them on, got "
            f"{len(words)} words in {len(shown)} captions and {len(apart)} others; give more pictures"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "words"))
        net = WordsNet(words, side=min(dataset.resolution), frames=frames)
        x, said = tensors(shown, words)
        if in_time:
            # as often as they are said: of so many rare words it else learns to deny all, and stops there
            share = said.mean(0)
            net.head.bias.data.copy_((share / (1 - share)).log())
            net.head.weight.data.mul_(0.1)
    steps, batch = steps or (1800 if in_time else 600), batch or (32 if in_time else 64)
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


def telling(captions: Sequence[str], most: int, *, in_time: bool = False) -> tuple[str, ...]:
    """The commonest words that stand in 1 to 90 percent of captions, of three letters or more."""
    counts = Counter(word for caption in captions for word in words_of(caption, in_time=in_time))
    some = [word for word, n in counts.items() if 0.01 <= n / len(captions) <= 0.9]
    some = [word for word in some if is_long(word, in_time=in_time)]
    return tuple(sorted(some, key=lambda word: (-counts[word], word))[:most])


def is_long(word: str, *, in_time: bool) -> bool:
    """Whether a word does more than hold others together; of clips "up" does, as it says where to."""
    last = word.rpartition(" ")[2]
    return len(last) > 2 or (in_time and last == "up")


def words_of(caption: str, *, in_time: bool = False) -> set[str]:
    """The words of a caption; of a clip's also the order in which things happen, where it is said.

    What is said behind "then" or "before", or in front of "after", comes later: each of these words stands
    there as "then left" too, and "then" for any of the three.
    """
    said = re.findall(r"[^\W\d_]+", caption.lower())
    order = next((i for i, word in enumerate(said) if word in LATER), None) if in_time else None
    if order is None:
        return set(said)
    first, later = said[:order], said[order + 1 :]
    if said[order] == "after":
        first, later = later, first
    return {*first, *later, "then", *(f"then {word}" for word in later)}


def tensors(samples: Sequence[Sample], words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Pictures uint8 (B, 3, H, W), or clips (B, 3, F, H, W), and which words each has, (B, words), 0 or 1."""
    images = torch.from_numpy(np.stack([sample.image for sample in samples])).movedim(-1, 1)
    in_time = images.ndim == 5
    found = [words_of(sample.caption, in_time=in_time) for sample in samples]
    return images.contiguous(), torch.tensor([[float(word in said) for word in words] for said in found])


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
        "pictures" if images.ndim == 4 else "clips": float(len(images)),
    }


def save(path: Path, net: WordsNet, facts: Mapping[str, Any]) -> None:
    """Write a network with what is known of it; `facts` are numbers and texts."""
    made = {"words": net.words, "side": net.side, "width": net.width, "frames": net.frames}
    told = {**made, "facts": dict(facts)}
    replace_file(path, safetensors_bytes(net.state_dict(), {"format": FORMAT, "told": json.dumps(told)}))


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
    net = WordsNet(told["words"], side=told["side"], width=told["width"], frames=told.get("frames"))
    net.load_state_dict(stored)
    return net.eval().requires_grad_(False), told["facts"]
