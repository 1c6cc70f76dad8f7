"""Settings and registrations of the built-in components: schedules, weights, levels. No torch."""

from __future__ import annotations

import attrs

from mdmkit.plugins.component import Component
from mdmkit.recipe.options import Use, opt, slot

__all__ = ["COMPONENTS"]

FORMS = ("table", "continuous")
STRATIFIED = "one draw in each of `batch` equally likely parts of the times: a less noisy loss"


@attrs.frozen
class Cosine:
    """The squared cosine of the released models."""

    form: str = opt(
        "table", "table: the released betas, capped at 0.999; continuous: the formula", choices=FORMS
    )
    steps: int = opt(1000, "entries of the table", ge=2)


@attrs.frozen
class DDPM:
    """Linear betas, as in DDPM."""

    beta_start: float = opt(1e-4, "the first beta", gt=0.0, lt=1.0)
    beta_end: float = opt(0.02, "the last beta", gt=0.0, lt=1.0)
    steps: int = opt(1000, "entries of the table", ge=2)


@attrs.frozen
class CosineLogSNR:
    """A cosine cut to a range of logsnr."""

    logsnr_max: float = opt(5.0, "logsnr next to the data")
    logsnr_min: float = opt(-5.0, "logsnr at t = 1")
    form: str = opt(
        "table", "table: as released, with a clean entry in front; continuous: the formula", choices=FORMS
    )
    steps: int = opt(1000, "entries of the table", ge=2)


@attrs.frozen
class Sigmoid:
    """A piece of a sigmoid, stretched from data to noise."""

    start: float = opt(-3.0, "where on the sigmoid t = 0 lies")
    end: float = opt(3.0, "where on the sigmoid t = 1 lies")
    tau: float = opt(1.0, "temperature", gt=0.0)


@attrs.frozen
class EDM:
    """Karras noise levels, from sigma_min to sigma_max."""

    sigma_min: float = opt(0.002, "sigma / alpha next to the data", gt=0.0)
    sigma_max: float = opt(80.0, "sigma / alpha at t = 1", gt=0.0)
    rho: float = opt(7.0, "the root of sigma that runs evenly; larger: more of t at low noise", gt=0.0)


@attrs.frozen
class Interpolated:
    """A cosine shifted for a high resolution near the data and for a low one near noise."""

    low: float = opt(0.5, "the side whose noise rules at t = 1, in sides of level 0", gt=0.0)
    high: float = opt(1.0, "the side whose noise rules at t = 0, in sides of level 0", gt=0.0)
    logsnr_max: float = opt(15.0, "logsnr of the cosine next to the data")
    logsnr_min: float = opt(-15.0, "logsnr of the cosine at t = 1")


@attrs.frozen
class Laplace:
    """Laplace's density over logsnr: most times near one noise level."""

    mean: float = opt(0.0, "logsnr at t = 0.5, where the density is highest", gt=-20.0, lt=20.0)
    scale: float = opt(0.5, "width of the density, in logsnr", gt=0.0)


@attrs.frozen
class ZeroTerminal:
    """Another schedule, stretched to leave no signal at t = 1."""

    schedule: Use = slot("noise_schedule", "ddpm", "the schedule that is stretched")


@attrs.frozen
class LinearFlow:
    """A straight line from data to noise: alpha = 1 - t, sigma = t."""


@attrs.frozen
class Uniform:
    """The same weight at every noise level."""

    space: str | None = opt(
        None,
        "weight 1 on the loss in this space; in loss_space if not given",
        choices=("x0", "eps", "v", "flow"),
    )


@attrs.frozen
class MinSNR:
    """min(SNR, gamma) on the x0 loss: clean pictures count no more than those at SNR = gamma."""

    gamma: float = opt(5.0, "the largest weight", gt=0.0)


@attrs.frozen
class SoftMinSNR:
    """SNR gamma / (SNR + gamma) on the x0 loss: min_snr without a corner."""

    gamma: float = opt(4.0, "the weight that clean pictures come near", gt=0.0)


@attrs.frozen
class SigmoidWeight:
    """sigmoid(b - logsnr) on the eps loss, as in VDM++ and SiD2."""

    b: float = opt(0.0, "the logsnr of weight 1/2; cleaner pictures count less")


@attrs.frozen
class EDMWeight:
    """SNR + 1 / sigma_data^2 on the x0 loss, as in EDM."""

    sigma_data: float = opt(0.5, "standard deviation of the pictures' pixels; 1 is weight 1 on v", gt=0.0)


@attrs.frozen
class P2:
    """1 / (k + SNR)^gamma on the eps loss: clean pictures count less."""

    k: float = opt(1.0, "the SNR above which weights fall", gt=0.0)
    gamma: float = opt(1.0, "the power by which they fall", gt=0.0)


@attrs.frozen
class Learned:
    """loss / e^u + u, with u learned over noise levels at each level: all noise levels count alike."""

    channels: int = opt(128, "Fourier features of the noise level", ge=1)


@attrs.frozen
class UniformTime:
    """Uniform t."""

    stratified: bool = opt(False, STRATIFIED)


@attrs.frozen
class LogitNormalTime:
    """logit(t) normal, as in Stable Diffusion 3: most draws at middle times."""

    stratified: bool = opt(False, STRATIFIED)
    mean: float = opt(0.0, "of logit(t); above 0 more noise than half")
    std: float = opt(1.0, "of logit(t)", gt=0.0)


@attrs.frozen
class LogNormalTime:
    """ln sigma of level 0 normal, as in EDM, through whatever schedule there is."""

    stratified: bool = opt(False, STRATIFIED)
    mean: float = opt(-1.2, "of ln(sigma / alpha) at level 0; logsnr has -2 times this")
    std: float = opt(1.2, "of ln(sigma / alpha) at level 0; logsnr has 2 times this", gt=0.0)


@attrs.frozen
class UniformLogSNR:
    """Uniform logsnr of level 0, whatever the schedule: the integral of VDM and VDM++."""

    stratified: bool = opt(False, STRATIFIED)
    logsnr_min: float = opt(-10.0, "the noisiest draw, as far as the schedule goes")
    logsnr_max: float = opt(10.0, "the cleanest draw, as far as the schedule goes")


@attrs.frozen
class LossAwareTime:
    """t in proportion to the loss seen there, weighted back: the loss of uniform t with less noise."""

    stratified: bool = opt(False, STRATIFIED)
    bins: int = opt(64, "parts of the times, each with a loss of its own", ge=1)
    floor: float = opt(0.1, "share of the draws that stays uniform", gt=0.0, le=1.0)
    decay: float = opt(0.99, "what a step leaves of the weight of losses seen before", ge=0.0, lt=1.0)


@attrs.frozen
class MSE:
    """Squared difference."""


@attrs.frozen
class Huber:
    """Pseudo-Huber: squared for small differences, straight for large ones."""

    delta: float = opt(0.1, "the difference from which it is rather straight than squared", gt=0.0)


@attrs.frozen
class MultiScale:
    """Squared difference at the level's own scale, its half, its quarter, ...; for a model of one level."""

    smallest: int = opt(32, "the shorter side of the smallest scale, at least", ge=1)
    power: float = opt(1.0, "a scale of side s counts (side / s) to this power")


COMPONENTS: list[Component] = [
    Component("noise_schedule", "cosine", Cosine, "mdmkit.schedules:Cosine"),
    Component("noise_schedule", "ddpm", DDPM, "mdmkit.schedules:DDPM"),
    Component("noise_schedule", "cosine_logsnr", CosineLogSNR, "mdmkit.schedules:CosineLogSNR"),
    Component("noise_schedule", "sigmoid", Sigmoid, "mdmkit.schedules:Sigmoid"),
    Component("noise_schedule", "edm", EDM, "mdmkit.schedules:EDM"),
    Component("noise_schedule", "interpolated", Interpolated, "mdmkit.schedules:Interpolated"),
    Component("noise_schedule", "laplace", Laplace, "mdmkit.schedules:Laplace"),
    Component("noise_schedule", "zero_terminal", ZeroTerminal, "mdmkit.schedules:ZeroTerminal"),
    Component("noise_schedule", "linear_flow", LinearFlow, "mdmkit.schedules:LinearFlow"),
    Component("weighting", "uniform", Uniform, "mdmkit.weighting:Uniform"),
    Component("weighting", "min_snr", MinSNR, "mdmkit.weighting:MinSNR"),
    Component("weighting", "soft_min_snr", SoftMinSNR, "mdmkit.weighting:SoftMinSNR"),
    Component("weighting", "sigmoid", SigmoidWeight, "mdmkit.weighting:SigmoidWeight"),
    Component("weighting", "edm", EDMWeight, "mdmkit.weighting:EDMWeight"),
    Component("weighting", "p2", P2, "mdmkit.weighting:P2"),
    Component("weighting", "learned", Learned, "mdmkit.weighting:Learned"),
    Component("time_sampler", "uniform", UniformTime, "mdmkit.times:UniformTime"),
    Component("time_sampler", "logit_normal", LogitNormalTime, "mdmkit.times:LogitNormalTime"),
    Component("time_sampler", "lognormal", LogNormalTime, "mdmkit.times:LogNormalTime"),
    Component("time_sampler", "uniform_logsnr", UniformLogSNR, "mdmkit.times:UniformLogSNR"),
    Component("time_sampler", "loss_aware", LossAwareTime, "mdmkit.times:LossAwareTime"),
    Component("loss", "mse", MSE, "mdmkit.targets:mse"),
    Component("loss", "huber", Huber, "mdmkit.targets:huber"),
    Component("loss", "multiscale", MultiScale, "mdmkit.targets:multiscale"),
]
