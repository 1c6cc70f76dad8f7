"""The loss, its gradients and whole steps against what the released code computed with the same weights."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mdmkit.interop.apple_keys import key_map, to_released
from mdmkit.nn import NestedUNet, ResBlock, UNetCore
from mdmkit.pyramid import Pyramid, pyramid
from mdmkit.resolutions import All, Mixed, rows_per_level
from mdmkit.targets import mse
from mdmkit.train.ema import EMA
from mdmkit.train.lr import Warmup
from mdmkit.train.objective import Objective, pyramid_loss
from mdmkit.train.optim import adamw
from mdmkit.weighting import Uniform
from tests.golden import SPACE, golden_case, network, off, process, read, released_sizes, tolerance

LOSSES = {
    "loss_unet": ["v_eps", "v_v", "eps_eps_ddpm", "vdm_weights_cosine", "rescale2", "output_scale"],
    "loss_nested2": [
        "v_eps_single",
        "v_eps_double",
        "v_eps_double_w4_1",
        "mixed_2_1",
        "mixed_2_1_w4_1_b6",
        "v_v",
        "eps_eps_ddpm",
        "unshifted",
        "power2",
        "vdm_weights",
    ],
    "loss_temporal": ["v_eps_double"],
}
VARIANTS = [(case, variant) for case, variants in LOSSES.items() for variant in variants]
# relative; their tables are float32 and gradients are kept in float32
GRADIENT = 1e-5
# of float32 steps
STEP = 5e-5
TEXT = {"in.lm_outputs": "cond", "in.lm_mask": "cond_mask"}


class Watched(nn.Module):
    """A nest that keeps what it is given and what it says."""

    def __init__(self, nest: nn.Module) -> None:
        super().__init__()
        self.nest = nest
        self.z: Pyramid = ()
        self.said: Pyramid = ()

    def forward(self, z: Pyramid, *args: Any) -> Pyramid:
        self.z, self.said = tuple(z), self.nest(z, *args)
        return self.said


@attrs.define
class Compared:
    """A pixel loss that keeps prediction and target in the space of the loss, level by level."""

    seen: list[tuple[Tensor, Tensor]] = attrs.Factory(list)

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        self.seen.append((prediction, target))
        return mse(prediction, target)


@attrs.define
class Case:
    """A recorded loss in our terms: levels run from low resolution to high."""

    recorded: dict[str, Tensor]
    meta: dict[str, Any]
    nest: NestedUNet
    objective: Objective
    x: Pyramid
    eps: Pyramid
    t: Tensor
    given: dict[str, Any]
    level_weights: Tensor
    shares: list[float]
    compared: Compared

    def losses(self) -> Tensor:
        return self.objective(self.x, self.eps, self.t, **self.given).trained


def recorded_loss(case: str, variant: str, dtype: torch.dtype = torch.float32) -> Case:
    folder = golden_case(case)
    meta = read(folder, "meta.json")["variants"][variant]
    recorded = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in load_file(folder / f"{variant}.safetensors").items()
    }
    changes = meta["overrides"]
    settings = read(folder, "config.json")["diffusion_config"] | changes
    sampler = settings["sampler_config"] | changes.get("sc", {})
    sizes = released_sizes(recorded, "model_in")
    levels, batch = len(sizes), len(recorded["in.images"])

    nest = network(folder, dtype)
    core = nest.levels[0]
    assert isinstance(core, UNetCore)
    core.output_limit = settings["model_output_scale"] or None
    frames = tuple(getattr(level, "grid_frames", 1) for level in nest.levels)
    mixed = settings.get("mixed_ratio")
    # from high to low there: 2:1 are two thirds of the rows with the high level on top
    parts = [float(part) for part in mixed.split(":")][::-1] if mixed else []
    sampler_of_rows = Mixed([part / sum(parts) for part in parts], levels=levels) if mixed else All(levels)
    rows = rows_per_level(sampler_of_rows.shares(0, 0), batch)
    weights = settings.get("multi_res_weights")
    level_weights = [float(weight) for weight in weights.split(":")][::-1] if weights else [1.0] * levels
    if levels > 1 and not settings["use_double_loss"]:
        level_weights[:-1] = [0.0] * (levels - 1)

    watched, compared = Watched(nest), Compared()
    micros = {
        key.removeprefix("in."): value
        for key, value in recorded.items()
        if key.startswith("in.") and key not in {"in.images", *TEXT}
    }
    return Case(
        recorded,
        meta,
        nest,
        Objective(
            watched,
            None,
            diffusion=process(sampler, sizes),
            loss_space=SPACE[sampler["loss_target_type"] or sampler["prediction_type"]],
            pixel_loss=compared,
            weighting=Uniform(),
        ),
        pyramid(recorded["in.images"], sizes, rows, frames=frames),
        tuple(recorded[f"eps.{levels - 1 - r}"][:count] for r, count in enumerate(rows)),
        (recorded["time"].double() + 1) / 1000,
        {
            "cond": recorded["in.lm_outputs"],
            "cond_mask": recorded["in.lm_mask"].bool(),
            "micros": micros,
        },
        torch.tensor(level_weights, dtype=dtype),
        [count / batch for count in rows],
        compared,
    )


@pytest.mark.golden
def test_every_recorded_loss_is_compared():
    for case, variants in LOSSES.items():
        files = {file.stem for file in golden_case(case).glob("*.safetensors")} - {"weights"}
        assert {name for name in files if "grads" not in name} == set(variants)


@pytest.mark.golden
@pytest.mark.parametrize(("case", "variant"), VARIANTS)
@torch.no_grad()
def test_losses_are_the_recorded_ones(case: str, variant: str):
    it = recorded_loss(case, variant)
    recorded, within = it.recorded, tolerance(it.meta["fp32_vs_fp64_loss"])
    total = (it.losses() * it.level_weights).sum()
    watched = it.objective.nest
    assert isinstance(watched, Watched)
    top = len(it.x) - 1
    for r in range(top + 1):
        count = len(it.x[r])
        assert off(watched.z[r], recorded[f"model_in.{top - r}"][:count]) <= within, r
        assert off(watched.said[r], recorded[f"model_out.{top - r}"][:count]) <= within, r
        # what is not in a level's share is zero there, and does not exist here
        assert not recorded[f"model_out.{top - r}"][count:].any()
    said, wanted = it.compared.seen[top]
    # for a single network they kept what the network said, not what the loss was taken of
    compared = said if case != "loss_unet" else watched.said[top]
    assert off(compared, recorded["pred"][: len(said)]) <= within
    assert off(wanted, recorded["target"][: len(said)]) <= within

    # example by example: a level counts for the rows in its share, over that share
    example, x = torch.zeros(len(recorded["loss"])), it.objective.diffusion.scaled(it.x)
    for i in range(len(example)):
        inside = [r for r in range(top + 1) if i < len(it.x[r])]
        said, z, clean, eps = (
            tuple(levels[r][i : i + 1] for r in inside) for levels in (watched.said, watched.z, x, it.eps)
        )
        alone = pyramid_loss(
            said,
            z,
            clean,
            eps,
            it.t[i : i + 1],
            diffusion=it.objective.diffusion,
            loss_space=it.objective.loss_space,
            pixel_loss=mse,
            weighting=Uniform(),
        ).trained
        example[i] = sum(alone[r] * it.level_weights[r] / it.shares[r] for r in inside)
    torch.testing.assert_close(example, recorded["loss"], rtol=within, atol=0)
    if "weights" in recorded:
        # VDM weights are no Weighting: they belong to a row and are divided by their sum over the batch
        total = (recorded["weights"] * example).sum() / recorded["weights"].sum()
    torch.testing.assert_close(total, recorded["total"].squeeze(), rtol=within, atol=0)


# not with VDM weights: a row's gradient there depends on the other rows of its batch
@pytest.mark.golden
@pytest.mark.parametrize(("case", "variant"), [pair for pair in VARIANTS if "vdm" not in pair[1]])
def test_gradients_are_the_recorded_ones(case: str, variant: str):
    it = recorded_loss(case, variant, torch.float64)
    (it.losses() * it.level_weights).sum().backward()
    gradients = {name: p.grad for name, p in it.nest.named_parameters() if p.grad is not None}
    norm = torch.stack([grad.norm() for grad in gradients.values()]).norm().item()
    assert norm == pytest.approx(it.meta["grad_norm_total"], rel=GRADIENT)
    names = key_map(it.nest)
    for ours, gradient in gradients.items() if "grad_l2" in it.meta else ():
        # what one-channel norm groups cancel is nothing but rounding
        recorded = it.meta["grad_l2"][names[ours]]
        assert gradient.norm().item() == pytest.approx(recorded, rel=GRADIENT, abs=1e-12), ours
    file = golden_case(case) / f"{variant}.grads_f32_from_f64.safetensors"
    if file.exists():
        theirs = to_released({name: gradients[name] for name in names}, it.nest)
        kept = load_file(file)
        assert len(kept) > 100
        for name, recorded in kept.items():
            assert (theirs[name] - recorded).norm() <= GRADIENT * recorded.norm() + 1e-12, name


@attrs.define
class Trained:
    """What three steps leave: losses and gradient norms of each, weights and averages at the end."""

    nest: NestedUNet
    losses: list[float]
    norms: list[float]
    averages: dict[str, Tensor]

    def released(self) -> dict[str, Tensor]:
        """Weights and averages under the names of the recording."""
        after, ema = (to_released(state, self.nest) for state in (self.nest.state_dict(), self.averages))
        named = {f"after.{name}": tensor for name, tensor in after.items()}
        return named | {f"ema.{name}": tensor for name, tensor in ema.items()}


def three_steps(meta: dict[str, Any], dtype: torch.dtype) -> Trained:
    """AdamW, clipping, warmup and EMA by our own parts, from the recorded pictures, times and noise."""
    folder = golden_case("train_step")
    io = load_file(folder / "io.safetensors")
    io = {key: value.to(dtype) if value.is_floating_point() else value for key, value in io.items()}
    sizes, nest = released_sizes(io, "0.eps"), network(folder, dtype)
    settings = read(folder, "config.json")["diffusion_config"]["sampler_config"]
    objective = Objective(
        nest, None, diffusion=process(settings, sizes), loss_space="eps", pixel_loss=mse, weighting=Uniform()
    )
    optimizer = adamw(
        nest.named_parameters(),
        lr=meta["lr"],
        betas=tuple(meta["betas"]),
        eps=meta["eps"],
        weight_decay=meta["weight_decay"],
    )
    warmup, ema = Warmup(steps=meta["warmup_steps"]), EMA.of(nest, decay=meta["ema_decay"])
    made = Trained(nest, [], [], {})
    for step, recorded in enumerate(meta["steps"]):
        # theirs rises from 1 / steps too, but stays there for a second step
        optimizer.param_groups[0]["lr"] = meta["lr"] * warmup.factor(max(step - 1, 0))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(recorded["lr"], rel=1e-12)
        losses = objective(
            pyramid(io[f"in.{step}.images"], sizes),
            (io[f"{step}.eps.1"], io[f"{step}.eps.0"]),
            (io[f"{step}.time"].double() + 1) / 1000,
            cond=io[f"in.{step}.lm_outputs"],
            cond_mask=io[f"in.{step}.lm_mask"].bool(),
        ).trained
        losses.sum().backward()
        made.losses.append(losses.sum().item())
        made.norms.append(nn.utils.clip_grad_norm_(nest.parameters(), meta["clip"]).item())
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        if step + 1 == meta["ema_warmup_steps"]:
            # theirs copies the weights until then, and has its full decay from there on; ours rises slowly
            # instead, and is past that after so many updates
            past = dict.fromkeys(ema.updates, 10_000)
            ema.load_state_dict({"averages": nest.state_dict(), "updates": past})
    made.averages = ema.state_dict()["averages"]
    return made


@pytest.mark.golden
def test_three_steps_are_the_recorded_ones():
    folder = golden_case("train_step")
    meta, io = read(folder, "meta.json"), load_file(folder / "io.safetensors")
    ours, exact = three_steps(meta, torch.float32), three_steps(meta, torch.float64)
    for made in (ours, exact):
        assert made.losses == pytest.approx([step["loss"] for step in meta["steps"]], rel=STEP)
        norms = [step["grad_norm_before_clip"] for step in meta["steps"]]
        assert made.norms == pytest.approx(norms, rel=STEP)

    names = key_map(ours.nest)
    left_out = {names[f"{name}.bias"] for name in before_one_channel_norms(ours.nest)}
    assert len(left_out) > 10
    weights, floors, compared = ours.released(), exact.released(), 0
    rough = set()
    for name in (name for name in weights if name.partition(".")[2] not in left_out):
        kind, _, theirs = name.partition(".")
        norm = meta[f"{kind}_l2"][theirs]
        assert weights[name].norm().item() == pytest.approx(norm, rel=STEP), name
        if name in io:
            # AdamW divides by the size of a gradient, and where that is nearly nothing float32 says little:
            # how little, the float64 steps say
            floor = off(floors[name], io[name].double())
            assert off(weights[name], io[name]) <= max(STEP, 4 * floor), name
            assert floor <= 2.5e-4, name
            rough |= {name} if floor > STEP else set()
            compared += 1
    assert compared > 300
    assert len(rough) <= 6, rough


def before_one_channel_norms(nest: NestedUNet) -> set[str]:
    """Convolutions whose bias a group norm behind them takes away again: groups of one channel."""
    blocks = {name: block for name, block in nest.named_modules() if isinstance(block, ResBlock)}
    assert all(block.norm2.num_channels == block.norm2.num_groups for block in blocks.values())
    # the last block of the outermost level stands in front of the head's norm
    last = next(name for name in reversed(blocks) if name.startswith(f"levels.{len(nest.levels) - 1}.up.0."))
    return {f"{name}.conv1" for name in blocks} | {f"{last}.conv2", f"{last}.skip"}
