"""The cost of a nest against counts made another way."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mdmkit.nn import NestedUNet
from mdmkit.nn.cost import COPIES, level_costs, training_rate

from .nests import WIDTH, core, nest, pictures, shell, told

SIDES = [(8, 12), (16, 24), (32, 48)]


def explicit(q, k, v, mask=None):
    return (q @ k.mT).softmax(-1) @ v


def test_flops_are_those_of_a_real_forward_pass():
    made = nest(3, text_layers=1)
    made.attend = explicit
    costs = level_costs(made, SIDES, 2, tokens=5, cond_dim=WIDTH)
    for levels in (1, 2, 3):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            made(pictures([1] * levels), **told(1))
        assert sum(cost.flops for cost in costs[:levels]) == counter.get_total_flops()


def test_levels_add_up_and_a_level_more_moves_none_below():
    two, three = (level_costs(nest(n), SIDES[:n], 2, 5, WIDTH) for n in (2, 3))
    assert two == three[:2]
    assert sum(cost.parameters for cost in three) == sum(p.numel() for p in nest(3).parameters())
    assert [cost.shape for cost in three] == [(3, h, w) for h, w in SIDES]


def test_memory_grows_with_rows_and_falls_with_use_checkpoint():
    middle = core(dtype=torch.float32)
    made = NestedUNet(middle, [shell(middle, dtype=torch.float32)])
    one, four, seven = (level_costs(made, SIDES[:2], rows, 5, WIDTH) for rows in (1, 4, 7))
    mixed = level_costs(made, SIDES[:2], (4, 1), 5, WIDTH)
    for r in range(2):
        fixed = COPIES * 4 * one[r].parameters
        assert one[r].memory == fixed + one[r].activations
        # but for what is made of the weights alone, in proportion to the rows
        assert seven[r].activations - four[r].activations == four[r].activations - one[r].activations > 0
    assert mixed[0].activations == four[0].activations
    assert one[1].activations <= mixed[1].activations < four[1].activations
    made.use_checkpoint = True
    less = level_costs(made, SIDES[:2], 4, 5, WIDTH)
    assert sum(c.activations for c in less) < 0.6 * sum(c.activations for c in four)
    assert made.use_checkpoint


def test_a_real_nest_and_one_on_meta_cost_the_same_and_stay_what_they_were():
    real = nest(2)
    before = {key: value.clone() for key, value in real.state_dict().items()}
    attend, training = real.attend, real.training
    costs = level_costs(real, SIDES[:2], 2, 5, WIDTH)
    assert costs == level_costs(nest(2).to("meta"), SIDES[:2], 2, 5, WIDTH)
    assert all(torch.equal(before[key], value) for key, value in real.state_dict().items())
    assert (real.attend, real.training) == (attend, training)


def test_frozen_parameters_need_no_gradients_and_moments():
    made = nest(1)
    whole = level_costs(made, SIDES[:1], 1, 5, WIDTH)[0]
    made.requires_grad_(False)
    frozen = level_costs(made, SIDES[:1], 1, 5, WIDTH)[0]
    assert frozen.memory == 8 * frozen.parameters
    assert whole.memory > COPIES * frozen.memory


def test_wrong_numbers_of_levels():
    with pytest.raises(ValueError, match="a resolution for each of 2 levels, got 1"):
        level_costs(nest(2), SIDES[:1], 1)
    with pytest.raises(ValueError, match="rows for each of 2 levels, got 3"):
        level_costs(nest(2), SIDES[:2], (1, 1, 1))


def test_the_rate_is_flops_over_time(monkeypatch: pytest.MonkeyPatch):
    """Each pass takes a quarter of a second by this clock, the first (a warm-up) not counted."""
    ticks = iter(0.25 * i for i in range(100))
    monkeypatch.setattr("mdmkit.nn.cost.time.perf_counter", lambda: next(ticks))
    rate = training_rate(torch.device("cpu"))
    # two 3x3 convolutions of 64 channels on 8 x 32 x 32 pixels, the linear layer of the embedding
    forward = 2 * (2 * 8 * 32 * 32 * 64 * 64 * 9) + 2 * 8 * 64 * 128
    # the backward pass of each takes two of these, of the embedding (no gradient to its input) one
    assert rate == pytest.approx((3 * forward - 2 * 8 * 64 * 128) / 0.25)
