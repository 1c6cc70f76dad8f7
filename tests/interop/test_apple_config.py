"""Released configs as recipes: the networks and numbers they mean, and an account of every key."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmkit import assemble
from mdmkit.errors import WrongInput
from mdmkit.interop.apple_config import Translation, translate
from mdmkit.interop.apple_yaml import read_yaml
from mdmkit.plugins import load_registry
from mdmkit.recipe import Recipe, load, loads
from mdmkit.recipe.emit import write
from tests.golden import golden_case
from tests.train import tiny

from . import released

REGISTRY = load_registry(env={"MDMKIT_PLUGINS": ""})
SAMPLER = "diffusion_config.sampler_config"


def recipe_of(told: Translation) -> Recipe:
    return loads(write(told.recipe), registry=REGISTRY)


def leaves(table: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield path + key


def changed(table: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a path, whose last key need not be there."""
    table = copy.deepcopy(table)
    *outer, key = path.split(".")
    at = table
    for step in outer:
        at = at[step]
    at[key] = value
    return table


def without(table: dict[str, Any], path: str) -> dict[str, Any]:
    table = changed(table, path, None)
    *outer, key = path.split(".")
    at = table
    for step in outer:
        at = at[step]
    del at[key]
    return table


@pytest.mark.parametrize("name", released.NAMES)
def test_the_released_networks_have_their_parameters(name: str, tmp_path: Path):
    path = released.write_yaml(tmp_path / "config.yaml", released.config(name))
    recipe = recipe_of(translate(read_yaml(path).values, text_width=2048))
    nest = assemble.nest(recipe, REGISTRY, device="meta")
    assert sum(p.numel() for p in nest.parameters()) == released.PARAMETERS[name]


@pytest.mark.parametrize("name", released.NAMES)
def test_the_recipe_of_a_released_config_passes_the_check(name: str, tmp_path: Path):
    path = tmp_path / "recipe.toml"
    path.write_text(write(translate(released.config(name), text_width=2048).recipe), encoding="utf-8")
    answer = tiny.here("check", "--build", path)
    assert answer.code == 0, answer.err
    assert f" {released.PARAMETERS[name]:,} " in answer.out


@pytest.mark.parametrize("name", released.NAMES)
def test_a_released_config_is_the_shipped_recipe(name: str):
    """The recipes that ship were written by hand; what a config says agrees with them."""
    recipe = recipe_of(translate(released.config(name), text_width=2048))
    shipped = load(f"recipes/cc12m_{name.partition('x')[0]}.toml", registry=REGISTRY)
    one_level = len(shipped.model.levels) == 1
    assert recipe.diffusion == (
        attrs.evolve(shipped.diffusion, shift_power=0.0) if one_level else shipped.diffusion
    )
    for level, theirs in zip(recipe.model.levels, shipped.model.levels, strict=True):
        quiet = {"ffn": theirs.network.settings.ffn} if level is not recipe.model.levels[0] else {}
        settings = attrs.evolve(level.network.settings, **quiet)  # an FFN where nothing attends is no FFN
        assert attrs.evolve(settings, attention=0) == attrs.evolve(theirs.network.settings, attention=0)
        assert level.resolution == theirs.resolution
    for key in (
        "optimizer",
        "lr_schedule",
        "clip",
        "ema",
        "caption_dropout",
        "checkpoint_every",
        "log_every",
    ):
        assert getattr(recipe.train, key) == getattr(shipped.train, key), key
    assert recipe.train.levels.name == shipped.train.levels.name
    assert recipe.sample.guidance == shipped.sample.guidance
    assert recipe.text is not None
    assert shipped.text is not None
    # theirs trained with each batch's own padding, which is what drawing needs; ours trains with all of it
    assert recipe.text.settings.pad == "exact"
    assert attrs.evolve(recipe.text.settings, precision="bf16", pad="max") == shipped.text.settings


def test_what_stands_in_ratios_is_turned_round():
    recipe = recipe_of(translate(released.config("256x256"), text_width=2048))
    assert recipe.train.levels.settings.shares == pytest.approx((1 / 3, 2 / 3))
    table = released.config("1024x1024")
    assert translate(table, text_width=2048).recipe["diffusion"]["level_weights"] == [1, 4, 16]
    three = changed(table, "diffusion_config.mixed_ratio", "3:2:1")
    assert recipe_of(translate(three, text_width=8)).train.levels.settings.shares == pytest.approx(
        (1 / 6, 2 / 6, 3 / 6)
    )


@pytest.mark.parametrize("name", released.NAMES)
def test_every_key_is_accounted_for(name: str):
    table = released.config(name)
    account = translate(table, text_width=2048).account
    lists = [account.carried, account.unread, account.machinery, account.training_only]
    for key in leaves(table):
        key = key.replace("-", "_")
        assert sum(key in some for some in lists) == 1, key
    assert "never read by the released code: " in "\n".join(account.lines())


def test_a_key_at_a_level_where_nothing_reads_it_is_carried_over_and_said():
    table = changed(released.config("1024x1024"), "schedule_shifted_power", 3)
    told = translate(table, text_width=2048)
    assert told.recipe["diffusion"]["shift_power"] == 2
    assert told.account.unread["schedule_shifted_power"] == f"{SAMPLER}.schedule_shifted_power counts"
    alone = translate(without(table, f"{SAMPLER}.schedule_shifted_power"), text_width=2048)
    assert alone.recipe["diffusion"]["shift_power"] == 3
    said = f"carried over as {SAMPLER}.schedule_shifted_power"
    assert alone.account.unread["schedule_shifted_power"] == said
    assert told.account.unread["multi_res_weights"] == "carried over as diffusion_config.multi_res_weights"


@pytest.mark.parametrize(
    ("path", "guess"),
    [
        ("waarmup_steps", "warmup_steps"),
        ("diffusion_config.use_duble_loss", "use_double_loss"),
        (f"{SAMPLER}.schedule_typ", "schedule_type"),
        ("reader_config.image_sise", "image_size"),
        ("unet_config.resolution_chanels", "resolution_channels"),
        ("unet_config.inner_config.skip_mid_block", "skip_mid_blocks"),
        ("unet_config.inner_config.resnet_config.dropuot", "dropout"),
    ],
)
def test_an_unknown_key_is_named(path: str, guess: str):
    with pytest.raises(WrongInput) as caught:
        translate(changed(released.config("256x256"), path, 1), text_width=2048, source="c.yaml")
    assert str(caught.value) == f"c.yaml: {path}: unknown key; did you mean '{guess}'?"


def test_all_unknown_keys_are_named_at_once():
    table = changed(changed(released.config("64x64"), "zzz", 1), "unet_config.yyy", 2)
    with pytest.raises(WrongInput) as caught:
        translate(table, text_width=2048, source="c.yaml")
    assert str(caught.value) == "c.yaml: zzz: unknown key\nc.yaml: unet_config.yyy: unknown key"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("unet_config.inner_config.resolution_channels", "256,512,768"),
        ("unet_config.inner_config.num_attention_layers", "[0, 1, 5]"),
        ("unet_config.inner_config.num_resnets_per_resolution", "2"),
        ("unet_config.attention_levels", ""),
        ("unet_config.temporal_dim", "1024"),
        ("unet_config.inner_config.temporal_dim", "None"),
        ("unet_config.skip_mid_blocks", "True"),
        ("unet_config.inner_config.skip_cond_emb", 0),
        (f"{SAMPLER}.prediction_type", "v_prediction"),
        (f"{SAMPLER}.rescale_signal", "None"),
        ("lr", "5e-05"),
        ("seed", "-1"),
        ("gradient-clip-norm", 2.0),
    ],
)
def test_other_spellings_mean_the_same(path: str, value: Any):
    table = released.config("256x256")
    wanted = translate(table, text_width=2048).recipe
    if "-" in path:
        table = without(table, path.replace("-", "_"))
    assert translate(changed(table, path, value), text_width=2048).recipe == wanted


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (f"{SAMPLER}.num_diffusion_steps", 250, "expected 1000, got 250; anything else is not offered here"),
        (
            f"{SAMPLER}.schedule_type",
            "SIGMOID",
            "expected one of DEEPFLOYD, DDPM, COSINE, got 'SIGMOID'",
        ),
        (
            f"{SAMPLER}.loss_target_type",
            "HA_STYLE",
            "expected one of V_PREDICTION, DDPM, DDIM, got 'HA_STYLE'",
        ),
        (f"{SAMPLER}.rescale_schedule", 2.0, "expected 1.0, got 2.0; anything else is not offered here"),
        ("lr", "fast", "expected a number, got 'fast'"),
        ("batch_size", 1.5, "expected a whole number, got 1.5"),
        ("fp16", [], "expected true or false, got list"),
        ("model", "unet", "unet has 1 levels, unet_config has 2"),
        ("reader_config.image_size", 128, "128, but sample_image_size is 256"),
        ("reader_config.append_eos", False, "expected True, got False; anything else is not offered here"),
        ("unet_config.num_attention_layers", [0, 1], "expected one number a stage, 3, got 2"),
        ("unet_config.num_resnets_per_resolution", [2, 2, 2000], "expected at most 64 a stage, got 2000"),
        ("unet_config.resolution_channels", [64] * 99, "expected at most 12 stages, got 99"),
        ("unet_config.temporal_dim", 512, "expected 1024, as in the innermost level, got 512"),
        ("unet_config.resnet_config", 3, "expected a table, got int"),
    ],
)
def test_a_value_without_a_counterpart_is_refused(path: str, value: Any, message: str):
    with pytest.raises(WrongInput) as caught:
        translate(changed(released.config("256x256"), path, value), text_width=2048, source="c.yaml")
    assert str(caught.value) == f"c.yaml: {path}: {message}"


def test_a_ratio_for_another_number_of_levels_is_refused():
    with pytest.raises(WrongInput, match=r"mixed_ratio: expected one number from 0 on for each of 2 levels"):
        translate(changed(released.config("256x256"), "mixed_ratio", "2:1:1"), text_width=8)
    with pytest.raises(WrongInput, match=r"mixed_ratio: expected numbers with colons.*got 121"):
        translate(changed(released.config("256x256"), "mixed_ratio", 121), text_width=8)


def test_what_else_changes_numbers():
    table = released.config("256x256")
    plain = translate(table, text_width=2048).recipe
    linear = translate(changed(table, f"{SAMPLER}.schedule_type", "DDPM"), text_width=8).recipe
    assert linear["diffusion"]["schedule"] == {"use": "ddpm", "beta_start": 1e-4, "beta_end": 0.02}
    eps = translate(changed(table, f"{SAMPLER}.prediction_type", "DDPM"), text_width=8).recipe
    assert (eps["diffusion"]["prediction"], eps["diffusion"]["loss_space"]) == ("eps", "eps")
    v = translate(without(table, f"{SAMPLER}.loss_target_type"), text_width=8).recipe
    assert (v["diffusion"]["prediction"], v["diffusion"]["loss_space"]) == ("v", "v")
    top = translate(changed(table, "diffusion_config.use_double_loss", False), text_width=8).recipe
    assert top["diffusion"]["level_weights"] == [0.0, 1.0]
    dynamic = translate(changed(table, f"{SAMPLER}.threshold_function", "DYNAMIC_IF"), text_width=8).recipe
    assert (plain["sample"]["threshold"], dynamic["sample"]["threshold"]) == ("clip", "dynamic_if")
    louder = changed(table | {"fp16": 1}, "loss_factor", 3)
    assert translate(louder, text_width=8).recipe["diffusion"]["level_weights"] == [3.0, 3.0]
    assert translate(louder, text_width=8).recipe["run"]["precision"] == "bf16"
    assert "level_weights" not in translate(louder | {"fp16": 0}, text_width=8).recipe["diffusion"]
    packed = translate(table | {"use_precomputed_text_embeddings": 1}, text_width=8)
    assert recipe_of(packed).text.name == "cached"  # pyright: ignore[reportOptionalMemberAccess]
    vdm = translate(changed(table, "diffusion_config.use_vdm_loss_weights", True), text_width=8).account
    assert vdm.training_only == ["diffusion_config.use_vdm_loss_weights"]


def test_pictures_that_are_scaled_and_outputs_that_are_bounded():
    """As the recorded unshifted nest and rescaled network have it; each where the released code reads it."""
    nest = translate(changed(released.config("256x256"), f"{SAMPLER}.schedule_shifted", False), text_width=8)
    assert (nest.recipe["diffusion"]["shift_power"], nest.recipe["diffusion"]["signal_scale_power"]) == (0, 1)
    single = changed(released.config("64x64"), f"{SAMPLER}.rescale_signal", 4.0)
    single = changed(single, "diffusion_config.model_output_scale", 2.0)
    told = translate(single, text_width=8)
    assert told.recipe["diffusion"]["signal_scale"] == 0.25
    assert told.recipe["model"]["levels"][0]["output_limit"] == 2.0
    assert recipe_of(told).diffusion.signal_scale == 0.25
    for path, message in (
        (f"{SAMPLER}.rescale_signal", "expected a number above 0, got 0.0"),
        ("diffusion_config.model_output_scale", r"expected 0 \(none\) or above, got -1.0"),
    ):
        value = 0.0 if "rescale" in path else -1.0
        with pytest.raises(WrongInput, match=message):
            translate(changed(released.config("64x64"), path, value), text_width=8)
    unread = translate(changed(released.config("256x256"), f"{SAMPLER}.rescale_signal", 4.0), text_width=8)
    assert "signal_scale" not in unread.recipe["diffusion"]
    assert unread.account.unread[f"{SAMPLER}.rescale_signal"] == "in a nest"


def test_without_text_there_is_no_text():
    recipe = recipe_of(translate(released.tiny_config(), text_width=None))
    assert recipe.text is None
    assert not recipe.sample.guidance


ODD = st.one_of(
    st.sampled_from([None, [], {}, "", "x", "1:2", -1, 0, 7, True, 1e300, 10**40, [1, "x"], {"a": {}}, [[]]]),
    st.text(max_size=5),
    st.integers(-5, 100),
)


@settings(deadline=None, max_examples=300)
@given(path=st.sampled_from(sorted(leaves(released.config("256x256")))), value=ODD)
def test_whatever_a_key_says_it_is_read_or_refused(path: str, value: Any):
    try:
        told = translate(changed(released.config("256x256"), path, value), text_width=2048)
        recipe_of(told)
    except WrongInput:
        return


@pytest.mark.golden
@pytest.mark.parametrize(
    "case", ["checkpoint_unet", "loss_unet", "loss_nested2", "sample_nested2", "train_step"]
)
def test_the_recorded_configs_build_the_recorded_networks(case: str):
    from safetensors.torch import load_file

    from mdmkit.interop.apple_file import read
    from mdmkit.interop.apple_keys import from_released
    from mdmkit.interop.apple_unet import text_width

    folder = golden_case(case)
    table = json.loads((folder / "config.json").read_text())
    file = folder / "weights.safetensors"
    state = load_file(file) if file.exists() else read(folder / "noema_args_dict.pth").tensors
    assert text_width(state) == table["lm_embed_dim"]
    recipe = recipe_of(translate(table, text_width=text_width(state), source=case))
    nest = assemble.nest(recipe, REGISTRY, device="meta")
    assert from_released(state, nest).keys() == nest.state_dict().keys()
