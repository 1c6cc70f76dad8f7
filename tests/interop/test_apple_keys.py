"""Our networks against what the released code computed with the same weights, and the names of both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mdmkit.interop.apple_keys import build_nest, from_released, key_map, level_settings, to_released
from mdmkit.nn import NestedUNet, UNetCore, UNetShell
from mdmkit.nn.embed import sinusoid, time_index
from tests.golden import golden_case, network, off, read, tolerance

UNETS = [
    "unet_plain",
    "unet_deep",
    "unet_skip_mid",
    "unet_text_masked",
    "unet_text_unmasked",
    "unet_text_noproj",
]
UNETS += ["unet_lmhead_masked", "unet_lmhead_unmasked"]
NESTS = ["nested2", "nested2_normed", "nested2_outer_attn", "nested2_ratio4", "nested3"]
NESTS += ["temporal", "temporal_spatial_ds"]
# with weights only: recorded for other rooms
WEIGHTS = ["loss_unet", "loss_nested2", "loss_temporal", "sample_unet", "sample_nested2", "train_step"]


def run(nest: NestedUNet, io: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The outputs, low resolution to high; the files go from high to low."""
    top = len(nest.levels) - 1
    io = {key: value.to(dtype) if value.is_floating_point() else value for key, value in io.items()}
    return list(
        nest(
            [io[f"x_t.{top - r}"] for r in range(top + 1)],
            (io["times"].double() + 1) / 1000,
            io.get("conditioning"),
            io["cond_mask"].bool() if "cond_mask" in io else None,
            {key.removeprefix("micros."): value for key, value in io.items() if key.startswith("micros.")},
        )
    )


@pytest.mark.golden
@pytest.mark.parametrize("case", UNETS + NESTS)
def test_outputs_are_the_recorded_ones(case: str):
    folder = golden_case(case)
    nest, floors = network(folder), read(folder, "meta.json")["fp32_vs_fp64_max_abs"]
    files = sorted(folder.glob("io*.safetensors"))
    assert {file.stem for file in files} == set(floors)
    for file in files:
        io = load_file(file)
        with torch.no_grad():
            outs = run(nest, io)
        for r, out in enumerate(reversed(outs)):
            assert off(out, io[f"out.{r}"]) <= tolerance(floors[file.stem]), f"{file.stem}, {r} from the top"


@pytest.mark.golden
@pytest.mark.parametrize("case", ["unet_lmhead_masked", "unet_text_noproj", "nested2_normed", "nested3"])
def test_numbers_on_the_way_are_the_recorded_ones(case: str):
    folder = golden_case(case)
    nest, io = network(folder), load_file(folder / "io.safetensors")
    core, outermost = nest.levels[0], nest.levels[-1]
    assert isinstance(core, UNetCore)
    assert isinstance(outermost, UNetCore | UNetShell)
    with torch.no_grad():
        index = time_index((io["times"].double() + 1) / 1000)
        emb = outermost.embedding.time(sinusoid(index, outermost.emb_dim // 4).float())
        text = core.read(io["conditioning"], io["cond_mask"].bool())
    assert text is not None
    torch.testing.assert_close(emb, io["mid.temb"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text.features, io["mid.conditioning"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text.pooled, io["mid.cond_emb"], atol=1e-5, rtol=1e-5)


@pytest.mark.golden
@pytest.mark.parametrize("case", UNETS + NESTS)
def test_gradients_have_the_recorded_norms(case: str):
    folder = golden_case(case)
    nest, recorded = network(folder, torch.float64), read(folder, "meta.json")["grad_l2"]
    outs = run(nest, load_file(folder / "io.safetensors"), torch.float64)
    (0.5 * torch.stack([out.square().mean() for out in outs]).sum()).backward()
    names = key_map(nest)
    # the layers that nothing uses have no gradient
    recorded = {name: norm for name, norm in recorded.items() if "interp_layer" not in name}
    assert set(recorded) == set(names.values())
    # frequencies of rotary embeddings are kept, and not trained
    fixed = {name for name, value in recorded.items() if value is None}
    assert fixed == {names[name] for name, p in nest.named_parameters() if not p.requires_grad}
    for ours, p in nest.named_parameters():
        if names[ours] in fixed:
            continue
        assert p.grad is not None
        wanted = recorded[names[ours]]
        # what one-channel norm groups cancel is nothing but rounding
        assert p.grad.norm().item() == pytest.approx(wanted, rel=1e-5, abs=1e-12), ours


@pytest.mark.golden
@pytest.mark.parametrize("case", UNETS + NESTS + WEIGHTS)
def test_weights_go_there_and_back(case: str):
    folder = golden_case(case)
    state, nest = load_file(folder / "weights.safetensors"), network(folder)
    back = to_released(nest.state_dict(), nest)
    # the layers that nothing uses are not kept
    assert {name for name in state if "interp_layer" not in name} == set(back)
    assert all(torch.equal(state[name], tensor) for name, tensor in back.items())


@pytest.mark.golden
def test_weights_that_do_not_match_are_refused():
    folder = golden_case("nested2")
    state, nest = load_file(folder / "weights.safetensors"), network(folder)
    missing = {key: value for key, value in state.items() if key != "inner_unet.conv_in.bias"}
    with pytest.raises(ValueError, match=r"released weights lack inner_unet\.conv_in\.bias"):
        from_released(missing, nest)
    with pytest.raises(ValueError, match=r"parameters that the network lacks: outer\.bias, outer\.weight"):
        from_released(state | {"outer.bias": torch.zeros(1), "outer.weight": torch.zeros(1)}, nest)
    with pytest.raises(ValueError, match=r"expected released conv_in\.bias of shape \(32,\), got \(16,\)"):
        from_released(state | {"conv_in.bias": torch.zeros(16)}, nest)
    ours = nest.state_dict()
    with pytest.raises(ValueError, match=r"weights lack levels\.0\.conv_in\.bias"):
        to_released({key: value for key, value in ours.items() if key != "levels.0.conv_in.bias"}, nest)
    with pytest.raises(ValueError, match="parameters that the network lacks: more"):
        to_released(ours | {"more": torch.zeros(1)}, nest)


def released(**changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "num_resnets_per_resolution": [1, 2],
        "temporal_dim": None,
        "attention_levels": [1],
        "num_attention_layers": [3, 2],
        "num_temporal_attention_layers": None,
        "conditioning_feature_dim": -1,
        "conditioning_feature_proj_dim": 48,
        "num_lm_head_layers": 1,
        "masked_cross_attention": 0,
        "resolution_channels": [32, 64],
        "skip_mid_blocks": False,
        "skip_cond_emb": False,
        "nesting": False,
        "micro_conditioning": "scale:64,watermark_score:0",
        "temporal_mode": False,
        "temporal_spatial_ds": False,
        "temporal_positional_encoding": False,
        "resnet_config": {
            "num_channels": -1,
            "output_channels": -1,
            "num_groups_norm": 16,
            "dropout": 0.1,
            "use_attention_ffn": True,
        },
    }
    return config | changes


def outer(inner: dict[str, Any], **changes: Any) -> dict[str, Any]:
    shell = {
        "inner_config": inner,
        "skip_inner_unet_input": True,
        "skip_normalization": False,
        "initialize_inner_with_pretrained": None,
        "freeze_inner_unet": False,
        "interp_conditioning": False,
    }
    around = {"skip_mid_blocks": True, "skip_cond_emb": True, "num_lm_head_layers": 0, "temporal_dim": 128}
    return released(**around) | shell | changes


def test_settings_run_from_low_resolution_to_high():
    core, shell = level_settings(outer(released(), resolution_channels=[16, 32]))
    assert core == {
        "channels": (32, 64),
        "blocks": (1, 2),
        "attention": (0, 2),
        "emb_dim": None,
        "norm_groups": 16,
        "dropout": 0.1,
        "ffn": True,
        "masked_cross_attention": False,
        "micro_conditioning": {"scale": 64.0, "watermark_score": 0.0},
        "middle": True,
        "cond_width": 48,
        "text_layers": 1,
        "pooled_text": True,
    }
    assert (shell["channels"], shell["inner_input"], shell["normalize_input"]) == ((16, 32), False, True)


def test_a_level_in_time_cuts_its_picture_into_frames():
    three, two = [32, 32, 32], [32, 32]
    layers: dict[str, Any] = {"num_resnets_per_resolution": [1, 1, 1], "num_attention_layers": [0, 0, 0]}
    in_time = {"temporal_mode": True, "resolution_channels": three, "attention_levels": [], **layers}
    inner = outer(released(), **in_time)
    attended = {"num_temporal_attention_layers": [1, 0, 2], "temporal_positional_encoding": True}
    again = outer(inner, **in_time, **attended)
    around = outer(again, temporal_mode=True, temporal_spatial_ds=True, resolution_channels=two)
    core, *shells = level_settings(outer(around, **in_time))
    assert "layout" not in core
    names = ("layout", "frames", "strides", "temporal_attention", "rotary")
    assert [tuple(shell.get(name) for name in names) for shell in shells] == [
        ("grid", 4, ((2, 1, 1), (2, 1, 1)), None, None),
        ("grid", 16, ((2, 1, 1), (2, 1, 1)), (1, 0, 2), True),
        ("grid", 16, None, None, None),
        ("grid", 256, ((2, 1, 1), (2, 1, 1)), None, None),
    ]


REFUSED = {
    "unknown": (released(attention_level=[1]), "unknown keys in a released unet_config: attention_level"),
    "core in time": (released(temporal_mode=True), "temporal_mode has a level inside, got none"),
    "picture with temporal attention": (
        outer(released(), num_temporal_attention_layers=[1, 0]),
        r"num_temporal_attention_layers=\[1, 0\] is only for networks with temporal_mode",
    ),
    "half a grid": (
        outer(released(), temporal_mode=True),
        "halves frames an even number of times, got 1",
    ),
    "attention over time, halved in space": (
        outer(
            released(), temporal_mode=True, temporal_spatial_ds=True, num_temporal_attention_layers=[1, 0]
        ),
        "temporal_spatial_ds have no temporal attention layers",
    ),
    "outer text": (
        outer(released(), skip_cond_emb=False),
        "outer level with a middle, pooled text or text layers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_refused(name: str):
    config, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        level_settings(config)


@pytest.mark.parametrize("inner_input", [True, False])
def test_every_parameter_has_a_released_name_of_its_own(inner_input: bool):
    nest = build_nest(outer(released(), skip_inner_unet_input=not inner_input), 40)
    names = key_map(nest)
    assert set(names) == set(nest.state_dict())
    assert len(set(names.values())) == len(names)
    state = {key: torch.randn_like(value) for key, value in nest.state_dict().items()}
    back = from_released(to_released(state, nest), nest)
    assert all(torch.equal(state[key], back[key]) for key in state)
