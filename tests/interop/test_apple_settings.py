"""Settings in the released words: read back they are the same, and what has no words is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.interop.apple_keys import HARMLESS, level_settings
from mdmkit.interop.apple_settings import MODELS, difference, diffusion_config, unet_config
from tests.golden import golden_case

NETWORKS = [
    "unet_plain",
    "unet_deep",
    "unet_skip_mid",
    "unet_text_masked",
    "unet_text_unmasked",
    "unet_text_noproj",
    "unet_lmhead_masked",
    "unet_lmhead_unmasked",
    "nested2",
    "nested2_normed",
    "nested2_outer_attn",
    "nested2_ratio4",
    "nested3",
    "temporal",
    "temporal_spatial_ds",
]
PROCESSES = ["sample_unet", "sample_nested2", "loss_unet", "loss_nested2", "train_step", "checkpoint_unet"]
numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: x + 0.0)
names = st.sampled_from(["scale", "watermark_score", "aesthetics"])


@st.composite
def levels(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Settings of a core and up to four shells, as `level_settings` gives them."""
    made = []
    for r in range(draw(st.integers(1, len(MODELS)))):
        stages = draw(st.integers(1, 4))

        def each(low: int, high: int, stages: int = stages) -> Any:
            return st.tuples(*[st.integers(low, high)] * stages)

        settings = {
            "channels": draw(each(1, 4096)),
            "blocks": draw(each(1, 9)),
            "attention": draw(each(0, 9)),
            "emb_dim": draw(st.none() | st.integers(8, 4096)),
            "norm_groups": draw(st.integers(1, 64)),
            "dropout": draw(st.floats(0, 1, exclude_max=True)),
            "ffn": draw(st.booleans()),
            "masked_cross_attention": draw(st.booleans()),
            "micro_conditioning": draw(st.none() | st.dictionaries(names, numbers, min_size=1)),
        }
        if r == 0:
            settings |= {
                "middle": draw(st.booleans()),
                "cond_width": draw(st.none() | st.integers(1, 4096)),
                "text_layers": draw(st.integers(0, 9)),
                "pooled_text": draw(st.booleans()),
            }
        else:
            settings |= {"inner_input": draw(st.booleans()), "normalize_input": draw(st.booleans())}
        made.append(settings)
    return made


@given(levels())
def test_reading_undoes_writing(settings: list[dict[str, Any]]) -> None:
    tree = unet_config(settings)
    assert level_settings(json.loads(json.dumps(tree))) == settings
    nesting = []
    while tree is not None:
        nesting.append(tree["nesting"])
        tree = tree.get("inner_config")
    assert nesting == [False] + [True] * (len(settings) - 1)


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def meaningful(tree: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that change nothing of the network."""
    kept = {key: value for key, value in tree.items() if key not in HARMLESS - {"nesting"}}
    return kept | ({"inner_config": meaningful(kept["inner_config"])} if "inner_config" in kept else {})


@pytest.mark.golden
@pytest.mark.parametrize("case", NETWORKS)
def test_recorded_networks_come_out_as_they_were(case: str) -> None:
    config = read(golden_case(case))
    settings = level_settings(config["unet_config"])
    assert meaningful(unet_config(settings)) == meaningful(config["unet_config"])
    assert MODELS[len(settings) - 1] == config["model"]


@pytest.mark.golden
@pytest.mark.parametrize("case", PROCESSES)
def test_recorded_processes_come_out_as_they_were(case: str) -> None:
    config = read(golden_case(case))
    recorded, several = config["diffusion_config"], config["model"] != "unet"
    found, left_out = diffusion_config(
        levels=1 + several,
        schedule=("cosine", {"form": "table", "steps": 1000}),
        shift_power=1.0 if several else 0.0,  # which nothing reads of one level
        prediction="v",
        loss_space="eps",
        threshold=("clip", {"limit": 1.0}),
    )
    # a picture divided by 1 is a picture that is not divided
    assert recorded["sampler_config"]["rescale_signal"] in (None, 1)
    recorded["sampler_config"]["rescale_signal"] = None
    assert (found, left_out) == (recorded, [])


def core(**changes: Any) -> dict[str, Any]:
    settings = {
        "resolution": (64, 64),
        "channels": (32, 64),
        "blocks": (1, 1),
        "attention": (0, 1),
        "strides": None,
        "in_channels": 3,
        "emb_dim": None,
        "heads": 8,
        "norm_groups": 32,
        "ffn": True,
        "masked_cross_attention": True,
        "micro_conditioning": None,
        "middle": True,
        "cond_width": 48,
        "text_layers": 0,
        "pooled_text": True,
        "block": "resnet",
        "dropout": 0.0,
    }
    return settings | changes


def shell(**changes: Any) -> dict[str, Any]:
    settings = {"attention": (0, 0), "inner_input": True, "normalize_input": False, "emb_dim": 128}
    return core() | {"resolution": (128, 128)} | settings | {"middle": False} | changes


DIFFERENT: dict[str, tuple[list[dict[str, Any]], int | None, str]] = {
    "levels": ([core(), *[shell()] * 5], 40, "model.levels: 6 levels; the released networks have at most 5"),
    "no text": (
        [core(), shell()],
        None,
        "text: there is none; a released network of several levels always reads text",
    ),
    "oblong": (
        [core(resolution=(32, 64))],
        40,
        "model.levels[0].resolution: [32, 64]; the released sampler draws squares",
    ),
    "block": (
        [core(block="acme.fast")],
        40,
        "model.levels[0].block: 'acme.fast'; the released networks have 'resnet'",
    ),
    "in_channels": (
        [core(in_channels=4)],
        40,
        "model.levels[0].in_channels: 4; the released networks have 3",
    ),
    "strides": (
        [core(), shell(strides=((2, 4),))],
        40,
        "model.levels[1].strides: [[2, 4]]; the released networks halve both sides at each stage",
    ),
    "heads": ([core(heads=4)], 40, "model.levels[0].heads: 4; the released networks have 8"),
    "heads of text layers": (
        [core(heads=4, attention=(0, 0), middle=False, text_layers=1)],
        40,
        "model.levels[0].heads: 4; the released networks have 8",
    ),
    "norm_groups": (
        [core(norm_groups=16)],
        40,
        "model.levels[0].norm_groups: 16; the attention of the released networks has 32",
    ),
    "scale": (
        [core(micro_conditioning={"scale": 0.0})],
        40,
        "model.levels[0].micro_conditioning.scale: the released networks divide by it; it must be above 0",
    ),
    "pooled_text": (
        [core(pooled_text=False)],
        40,
        "model.levels[0].pooled_text: false; the released networks cannot read text without it",
    ),
    "extra_blocks": (
        [core(extra_blocks=(0, 1)), shell()],
        40,
        "model.levels[0].extra_blocks: [0, 1]; the released networks have none",
    ),
    "self_conditioning": (
        [core(), shell(self_conditioning=True)],
        40,
        "model.levels[1].self_conditioning: true; the released networks have none",
    ),
    "inner_input": (
        [core(), shell(inner_input=False)],
        40,
        "model.levels[1].inner_input: false; the released networks fail with such a setting",
    ),
    "projected": (
        [core(), shell(attention=(0, 1))],
        40,
        "model.levels[1].attention: the core projects text from width 40 to 48; "
        "attention of a released outer level needs it at one width",
    ),
    "masks": (
        [core(cond_width=40), shell(attention=(0, 1), masked_cross_attention=False)],
        40,
        "model.levels[1].masked_cross_attention: false; "
        "in the released networks the core's setting holds for every level",
    ),
}
FRAMES = {"layout": "grid", "strides": ((2, 1, 1),) * 2, "channels": (32, 32, 32), "attention": (0, 0, 0)}
DIFFERENT |= {
    "frames": (
        [core(), shell(**FRAMES, frames=16)],
        40,
        "model.levels[1].frames: 16; a released network of these levels has 4",
    ),
    "strides in time": (
        [core(), shell(**FRAMES | {"strides": ((4, 1, 1),)}, frames=4)],
        40,
        "model.levels[1].strides: [[4, 1, 1]]; the released networks halve frames at each stage",
    ),
}
ALIKE: dict[str, tuple[list[dict[str, Any]], int | None]] = {
    "as they are": ([core(), shell()], 40),
    "two said out loud": ([core(strides=(2,)), shell(strides=((2, 2),))], 40),
    "no attention to have heads": ([core(), shell(heads=4, norm_groups=16)], 40),
    "no text": ([core(cond_width=None, pooled_text=False)], None),
    "attention outside": ([core(cond_width=40), shell(attention=(0, 1))], 40),
    "frames": ([core(), shell(**FRAMES, frames=4)], 40),
    "masks nobody looks at": ([core(), shell(masked_cross_attention=False)], 40),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_first_difference_is_named(name: str) -> None:
    nest, cond_dim, line = DIFFERENT[name]
    assert difference(nest, cond_dim) == line


@pytest.mark.parametrize("name", ALIKE)
def test_what_makes_no_difference_is_none(name: str) -> None:
    assert difference(*ALIKE[name]) is None


def process(**changes: Any) -> tuple[dict[str, Any], list[str]]:
    told: dict[str, Any] = {
        "levels": 2,
        "schedule": ("cosine", {"form": "table", "steps": 1000}),
        "shift_power": 2.0,
        "prediction": "v",
        "loss_space": "eps",
    }
    return diffusion_config(**told | changes)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"schedule": ("sigmoid", {})},
            "diffusion.schedule: 'sigmoid'; "
            "the released code has those called cosine, cosine_logsnr, ddpm here",
        ),
        (
            {"schedule": ("cosine", {"form": "continuous", "steps": 1000})},
            "diffusion.schedule.form: 'continuous'; the released code has 'table'",
        ),
        ({"schedule": ("ddpm", {"steps": 500})}, "diffusion.schedule.steps: 500; the released code has 1000"),
        ({"signal_scale": 0.5}, "diffusion.signal_scale: 0.5; a released nest has 1.0"),
        ({"output_limit": 2.0}, "model.levels[0].output_limit: 2.0; a released nest has none"),
        (
            {"signal_scale_power": 1.0},
            "diffusion.signal_scale_power: 1.0, with shift_power = 2.0; "
            "a released nest has one of the two, and no signal_scale_power but 1",
        ),
        ({"prediction": "flow"}, "diffusion.prediction: 'flow'; the released code has eps and v"),
    ],
)
def test_another_process_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        process(**changes)


def test_what_is_said_of_a_process() -> None:
    config, left_out = process(
        schedule=("ddpm", {"beta_start": 2e-4, "beta_end": 0.03, "steps": 1000}),
        prediction="eps",
        loss_space="v",
        threshold=("dynamic", {"quantile": 0.995, "maximum": 100.0, "limit": 1.0}),
        level_weights=(1.0, 4.0),
        shares=(1 / 3, 2 / 3),
    )
    sampler = config["sampler_config"]
    assert left_out == []
    assert (sampler["schedule_type"], sampler["beta_start"], sampler["beta_end"]) == ("DDPM", 2e-4, 0.03)
    assert (sampler["prediction_type"], sampler["loss_target_type"]) == ("DDPM", "V_PREDICTION")
    assert (sampler["schedule_shifted"], sampler["schedule_shifted_power"]) == (True, 2.0)
    assert sampler["threshold_function"] == "DYNAMIC"
    assert (config["multi_res_weights"], config["mixed_ratio"]) == ("4:1", "2:1")


def test_pictures_may_be_scaled() -> None:
    sampler = process(levels=1, signal_scale=0.5)[0]["sampler_config"]
    assert (sampler["rescale_signal"], process(levels=1)[0]["sampler_config"]["rescale_signal"]) == (2, None)
    sampler = process(signal_scale_power=1.0, shift_power=0.0)[0]["sampler_config"]
    assert (sampler["rescale_signal"], sampler["schedule_shifted"]) == (None, False)


def test_outputs_of_a_single_network_may_be_bounded() -> None:
    assert process(levels=1, output_limit=2.0)[0]["model_output_scale"] == 2.0
    assert process(levels=1)[0]["model_output_scale"] == 0


def test_weights_keep_their_size_and_shares_their_ratio() -> None:
    config, _ = process(level_weights=(0.25, 0.75), shares=(0.1, 0.9))
    assert (config["multi_res_weights"], config["mixed_ratio"]) == ("0.75:0.25", "9:1")
    odd = (0.123456789, 1 - 0.123456789)
    config, _ = process(shares=odd)
    assert tuple(float(part) for part in reversed(config["mixed_ratio"].split(":"))) == odd


def test_what_has_no_place_is_listed() -> None:
    config, left_out = process(loss_space="x0", threshold=("clip", {"limit": 2.0}))
    assert left_out == ["diffusion.loss_space", "sample.threshold"]
    assert config["sampler_config"]["loss_target_type"] == "V_PREDICTION"
    assert config["sampler_config"]["threshold_function"] == "CLIP"
