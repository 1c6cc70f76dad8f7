"""Does a distance of clips see what only time tells, and how well does its network read what moves?

    python benches/video_fidelity.py [--quick] [--out FILE] [--count N] [--seed N]

A network of words is learned from `moving_shapes`: clips of 8 frames of 16 pixels, four colours, four shapes,
every motion, speeds, one or two objects, sequences, plain captions. Printed is how well it reads clips that
were kept apart, word by word in the JSON line. Then `video_fidelity` in its features, from clips of the data,
of clips that move right, down, grow or turn clockwise:

    other      more of the same                         still      each clip's first frame all along
    backwards  played from the end                      swapped    its second half before its first
    shuffled   its frames in a fixed disorder           noisy      with grey noise of 0.1

and beside it the same of their frames one by one, in the features of a network of words that was learned from
pictures of such shapes: frames in another order have no other statistics.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from about import about
from torch import Tensor

from mdmkit.data.moving_shapes import MovingShapes
from mdmkit.data.shapes import Shapes
from mdmkit.evaluate.fidelity import Fidelity, VideoFidelity
from mdmkit.evaluate.words import WordsNet, learn, save, tensors

DATA: dict[str, Any] = {
    "resolution": (16, 16),
    "shapes": ("circle", "square", "triangle", "cross"),
    "colours": ("red", "green", "blue", "yellow"),
    "sizes": ("large",),
    "textures": ("solid",),
    "wording": "plain",
    "split": "all",
}
FRAMES = 8
ONE_WAY = ("right", "down", "grow", "clockwise")  # played backwards, they are others


def clips(count: int, seed: int) -> Tensor:
    """(B, 3, F, H, W) in [-1, 1]."""
    source = MovingShapes(seed=seed, frames=FRAMES, motions=ONE_WAY, **DATA)
    images, _ = tensors([source.sample(i) for i in range(count)], ())
    return images.float() / 127.5 - 1


def plays(x: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(FRAMES, generator=generator)
    noise = 0.1 * torch.randn(len(x), 1, *x.shape[2:], generator=generator)
    return {
        "other": x,
        "backwards": x.flip(2),
        "shuffled": x[:, :, order],
        "swapped": x.roll(FRAMES // 2, 2),
        "still": x[:, :, :1].expand_as(x),
        "noisy": (x + noise).clamp(-1, 1),
    }


def by_word(net: WordsNet, seed: int, count: int = 512) -> dict[str, float]:
    """The share of clips that say a word in which the network reads it."""
    source = MovingShapes(seed=seed, frames=FRAMES, **DATA)
    images, said = tensors([source.sample(i) for i in range(count)], net.words)
    with torch.no_grad():
        found = torch.cat([net(part.float() / 127.5 - 1) > 0 for part in images.split(64)])
    there = said > 0
    recall = (found & there).sum(0) / there.sum(0).clamp(min=1)
    return {word: round(share, 2) for word, share in zip(net.words, recall.tolist(), strict=True)}


def far(metric: Fidelity, drawn: Tensor, real: Tensor) -> dict[str, float]:
    metric.update(drawn, [])
    metric.beside(real)
    return metric.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a network that has hardly learned, few clips")
    parser.add_argument("--out", type=Path, help="a file for the network of clips")
    parser.add_argument("--count", type=int, default=256, help="clips to compare")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    few: dict[str, Any] = {"seed": options.seed}
    if options.quick:
        few |= {"pictures": 256, "steps": 20, "batch": 16}
    count = 32 if options.quick else options.count
    with TemporaryDirectory() as folder:
        begun = time.process_time()
        net, told = learn(MovingShapes(seed=0, frames=FRAMES, **DATA), **few)
        seconds = time.process_time() - begun
        path = options.out or Path(folder) / "clips.safetensors"
        save(path, net, {**told, "seed": options.seed})
        shapes = Shapes(seed=0, objects=(1, 2), positions=False, **DATA)
        pictures, of_frames = learn(shapes, **{"steps": 300, **few})
        save(Path(folder) / "pictures.safetensors", pictures, of_frames)
        print(f"learned in {seconds:.0f} s of the CPU; kept apart: {json.dumps(told)}", flush=True)
        real, results = clips(count, 11), []
        print(f"{'clips':10} {'Fréchet':>9} {'kernel':>9} {'frames, Fréchet':>16} {'kernel':>9}")
        for name, drawn in plays(clips(count, 12)).items():
            whole = far(VideoFidelity(weights=str(path)), drawn, real)
            frames = Fidelity(weights=str(Path(folder) / "pictures.safetensors"), subsets=10)
            alone = far(frames, *(x.transpose(1, 2).flatten(0, 1) for x in (drawn, real)))
            row = [one[key] for one in (whole, alone) for key in ("frechet", "kernel")]
            results.append([name, *(round(number, 4) for number in row)])
            print(f"{name:10} {row[0]:9.2f} {row[1]:9.3f} {row[2]:16.2f} {row[3]:9.3f}", flush=True)
    facts = {"quick": options.quick, "count": count, "cpu_s": round(seconds, 1), "extractor": told}
    facts |= {"frames_extractor": of_frames, "recall": by_word(net, 13), "results": results}
    print(json.dumps({**about("video_fidelity"), **facts}))


if __name__ == "__main__":
    main()
