"""Batteries of the network: blocks, attention, cores, shells, text encoders."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .subject import Subject, load

__all__ = ["attention", "block", "core", "shell", "temporal_layer", "text_encoder"]

EMB_DIM = 32
NORM_GROUPS = 8
COND_DIM = 24
SIZE = (16, 24)  # not a square


def block(it: Subject) -> None:
    """Shape kept but for the channels; starts as the identity where they agree; takes the embedding in."""
    where = {"emb_dim": EMB_DIM, "norm_groups": NORM_GROUPS, "device": "cpu", "dtype": torch.float64}
    same = it.build(in_channels=32, out_channels=32, **where)
    x, emb = _draw(2, 32, *SIZE), _draw(2, EMB_DIM, seed=1)
    out = it.attempt("forward(x, emb)", lambda: same(x, emb))
    it.must(out.shape == x.shape, f"gives {tuple(out.shape)} for {tuple(x.shape)}")
    off = _distance(out, x)
    it.must(off == 0, f"must start as the identity (last layer at zero), but is off by {off:.3g}")
    _stir(same)
    it.must(not torch.equal(same(x, emb), same(x, -emb)), "does not use the embedding")
    _rows_alone(it, same(x, emb), same(x[:1], emb[:1]))
    same(x, emb).square().mean().backward()
    _has_gradients(it, same)
    wider = it.build(in_channels=32, out_channels=64, **where)
    got = it.attempt("forward(x, emb) from 32 to 64 channels", lambda: wider(x, emb))
    it.must(got.shape[1] == 64, f"gives {got.shape[1]} channels of 64")
    _builds_on_meta(it, it.build(in_channels=32, out_channels=64, **{**where, "device": "meta"}), wider)


def temporal_layer(it: Subject) -> None:
    """Starts as the identity for any frames; a clip does not see others; a picture is a still clip."""
    where = {"channels": 32, "emb_dim": EMB_DIM, "device": "cpu", "dtype": torch.float64}
    made = it.build(**where)
    x, emb = _draw(2 * 4, 32, *SIZE), _draw(2, EMB_DIM, seed=1)
    for frames, clips in ((4, 2), (1, 2), (8, 1)):
        rows = x[: frames * clips]
        out = it.attempt(f"forward(x, emb, {frames})", lambda: made(rows, emb[:clips], frames))  # noqa: B023
        it.must(out.shape == rows.shape, f"gives {tuple(out.shape)} for {tuple(rows.shape)}")
        off = _distance(out, rows)
        it.must(off == 0, f"must start as the identity with {frames} frames, but is off by {off:.3g}")
    _stir(made)
    out = made(x, emb, 4)
    _rows_alone(it, out, made(x[:4], emb[:1], 4))
    changed = torch.cat([x[:1] + 1, x[1:]])
    it.must(not torch.equal(made(changed, emb, 4)[1:4], out[1:4]), "a frame never sees another of its clip")
    lone = made(x[:1], emb[:1], 1)
    still = made(x[:1].repeat(4, 1, 1, 1), emb[:1], 4)
    off = _distance(still, lone.expand_as(still))
    it.must(off < 1e-9, f"says of a clip that stands still another thing than of its frame, by {off:.3g}")
    made(x, emb, 4).square().mean().backward()
    _has_gradients(it, made)
    _builds_on_meta(it, it.build(**{**where, "device": "meta"}), made)


def attention(it: Subject) -> None:
    """Agrees with softmax(q k' / sqrt(D)) v, masked or not; attention over nothing gives zero."""
    attend = it.build()
    for tokens, keys, dim in ((6, 6, 8), (5, 11, 16)):
        q, k, v = _draw(3, 2, tokens, dim), _draw(3, 2, keys, dim, seed=1), _draw(3, 2, keys, dim, seed=2)
        by_key = (
            torch.arange(keys)[None] < torch.tensor([keys, 3, 0])[:, None]
        )  # the last row attends to nothing
        by_pair = (_draw(3, 1, tokens, keys, seed=3) > -1) & by_key[:, None, None]
        for mask, name in ((None, "no mask"), (by_key, "a mask (B, S)"), (by_pair, "a mask (B, 1, L, S)")):
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            got = it.attempt(f"attention with {name}", lambda: attend(*leaves, mask))  # noqa: B023
            it.must(got.shape == q.shape, f"with {name} gives {tuple(got.shape)} for q of {tuple(q.shape)}")
            if mask is not None:
                off = _distance(got[2], torch.zeros_like(got[2]))
                it.must(off == 0, f"with {name}: attention over nothing must give zero, got {off:.3g}")
            off = _distance(got, _reference(q, k, v, mask))
            it.must(off < 1e-5, f"with {name} is off softmax(q k' / sqrt(D)) v by {off:.3g}")
            got.square().sum().backward()
            lost = leaves[0].grad
            it.must(mask is None or lost is None or not lost[2].any(), f"with {name}: nothing has a gradient")
            for x, leaf in zip("qkv", leaves, strict=True):
                grad = leaf.grad
                it.must(
                    grad is not None and grad.isfinite().all(), f"with {name} has no finite gradient for {x}"
                )


def _reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    weight = (q.double() @ k.double().mT / math.sqrt(q.shape[-1])).exp()  # small numbers: no need to shift
    if mask is not None:
        weight = weight * (mask[:, None, None] if mask.ndim == 2 else mask)
    return weight @ v.double() / weight.sum(-1, keepdim=True).clamp_min(1e-300)


def core(it: Subject) -> None:
    """Runs alone as a nest of one level, with and without text; a row does not see its batch mates."""
    for cond_dim in (COND_DIM, None):
        made = it.build(cond_dim=cond_dim, device="cpu", dtype=torch.float32)
        nest = it.attempt("NestedUNet(core, [])", lambda: _nest(made, []))  # noqa: B023
        _stir(nest)
        z, t, cond = [_draw(2, 3, *SIZE).float()], torch.tensor([0.3, 0.9]), _text(cond_dim)
        out = it.attempt(f"forward with cond_dim={cond_dim}", lambda: nest(z, t, **cond))  # noqa: B023
        it.must(len(out) == 1 and out[0].shape == z[0].shape, f"predicts {[tuple(o.shape) for o in out]}")
        _rows_alone(it, out[0], nest([z[0][:1]], t[:1], **_first(cond))[0])
        it.must(not torch.equal(out[0], nest(z, t * 0.5, **cond)[0]), "does not use t")
        if cond:
            other = nest(z, t, cond=-cond["cond"], cond_mask=cond["cond_mask"])[0]
            it.must(not torch.equal(out[0], other), "does not use the text features")
            padded = cond["cond"].masked_fill(~cond["cond_mask"][..., None], 99.0)
            hidden = nest(z, t, cond=padded, cond_mask=cond["cond_mask"])[0]
            it.must(torch.allclose(out[0], hidden, atol=1e-5), "masked text features change the prediction")
        nest(z, t, **cond, **_shown(nest, z))[0].square().mean().backward()
        _has_gradients(it, nest)
        _builds_on_meta(it, it.build(cond_dim=cond_dim, device="meta", dtype=torch.float32), made)


def shell(it: Subject) -> None:
    """Predicts at its own resolution; a fresh one leaves the level below untouched, bit for bit."""
    make_core = load("mdmkit.nn:UNetCore")
    inner = make_core(channels=(32, 32), blocks=1, attention=(0, 1), cond_dim=COND_DIM, device="cpu")
    _stir(inner)
    join = {"inner_channels": inner.channels[0], "cond_width": inner.cond_width}
    made = it.build(**join, device="cpu", dtype=torch.float32)
    nest = it.attempt("NestedUNet(core, [shell])", lambda: _nest(inner, [made]))
    side = SIZE[0] * made.ratio[0], SIZE[1] * made.ratio[1]
    z = [_draw(2, 3, *SIZE).float(), _draw(2, 3, *side, seed=1).float()]
    t, text = torch.tensor([0.3, 0.9]), _text(COND_DIM)
    with torch.no_grad():
        below = nest(z[:1], t, **text)[0]
        out = it.attempt("forward over two levels", lambda: nest(z, t, **text))
        sizes = [tuple(o.shape) for o in out]
        it.must(sizes == [tuple(x.shape) for x in z], f"predicts {sizes} for {[tuple(x.shape) for x in z]}")
        it.must(torch.equal(out[0], below), "a fresh shell changes the prediction of the level below")
        it.must(not out[1].any(), "a fresh shell must predict 0 (its head starts at zero)")
        _stir(nest)
        out = nest(z, t, **text)
        _rows_alone(it, out[1], nest([x[:1] for x in z], t[:1], **_first(text))[1])
        mixed = nest([z[0], z[1][:1]], t, **text)
        low = nest(z[:1], t, **text)[0]
        off = max(_distance(mixed[0][1:], low[1:]), _distance(mixed[1], out[1][:1]))
        it.must(off < 1e-4, f"in a batch of which part stops below, predictions are off by {off:.3g}")
        it.must(not torch.equal(out[1], nest(z, t * 0.5, **text)[1]), "does not use t")
    nest(z, t, **text, **_shown(nest, z))[1].square().mean().backward()
    _has_gradients(it, made)
    _builds_on_meta(it, it.build(**join, device="meta", dtype=torch.float32), made)


def _first(text: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x[:1] for name, x in text.items()}


def _nest(inner: nn.Module, shells: list[nn.Module]) -> nn.Module:
    return load("mdmkit.nn:NestedUNet")(inner, shells)


def _shown(nest: nn.Module, z: list[Tensor]) -> dict[str, list[Tensor]]:
    """What levels with self-conditioning are shown."""
    return {"previous": z} if nest.self_conditioning else {}


def _text(cond_dim: int | None) -> dict[str, Tensor]:
    if cond_dim is None:
        return {}
    mask = torch.arange(5)[None] < torch.tensor([5, 2])[:, None]
    return {"cond": _draw(2, 5, cond_dim, seed=4).float(), "cond_mask": mask}


def text_encoder(it: Subject) -> None:
    """Captions become (B, L, width) and a mask; a caption's features do not depend on its batch mates."""
    encoder = it.build(device="cpu", dtype=torch.float32)
    it.must(isinstance(encoder.width, int) and encoder.width > 0, f"width is {encoder.width!r}")
    it.must(
        isinstance(encoder.trainable, bool), f"trainable is {encoder.trainable!r}, expected True or False"
    )
    captions = ["a small red star left of a large blue circle", "", "a circle"]
    features, mask = it.attempt("encode(captions)", lambda: encoder.encode(captions))
    it.must(
        features.ndim == 3 and features.shape[0] == 3 and features.shape[2] == encoder.width,
        f"features are {tuple(features.shape)}, expected (3, L, {encoder.width})",
    )
    it.must(features.is_floating_point(), f"features are {features.dtype}")
    it.must(
        mask.shape == features.shape[:2] and mask.dtype == torch.bool,
        f"mask is {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(features.shape[:2])}",
    )
    it.must(features[mask].isfinite().all(), "features are not finite")
    it.must(mask[0].any(), "a caption has no token")
    for row, caption in enumerate(captions):
        alone, alone_mask = it.attempt(f"encode([{caption!r}])", lambda: encoder.encode([caption]))  # noqa: B023
        together = features[row][mask[row]]
        it.must(
            alone[0][alone_mask[0]].shape == together.shape
            and torch.allclose(alone[0][alone_mask[0]], together, atol=1e-4, rtol=1e-4),
            f"features of {caption!r} depend on the captions beside it",
        )
    it.must(
        features.requires_grad == encoder.trainable,
        f"trainable is {encoder.trainable}, but requires_grad of the features is {features.requires_grad}",
    )


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _stir(module: nn.Module) -> None:
    """Random values in every parameter: nothing starts at zero any more, every path carries something."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.3 / max(1.0, math.sqrt(parameter[0].numel() if parameter.ndim > 1 else 1))
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * scale)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def _rows_alone(it: Subject, among: Tensor, alone: Tensor) -> None:
    off = _distance(among[: len(alone)], alone)
    it.must(off < 1e-4, f"a row among others differs from the same row alone by {off:.3g}")


def _has_gradients(it: Subject, module: nn.Module) -> None:
    dead = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    it.must(not dead, f"parameters that nothing uses: {', '.join(dead[:5])}")
    wild = [
        name for name, p in module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
    ]
    it.must(not wild, f"gradients that are not finite: {', '.join(wild[:5])}")


def _builds_on_meta(it: Subject, on_meta: nn.Module, real: nn.Module) -> None:
    for name, tensor in (*on_meta.named_parameters(), *on_meta.named_buffers()):
        it.must(
            tensor.is_meta, f"{name} is on {tensor.device} when built on meta; forward device= to every layer"
        )
    shapes = {name: p.shape for name, p in on_meta.named_parameters()}
    it.must(
        set(shapes) == {name for name, _ in real.named_parameters()},
        "parameters built on meta have other names",
    )
