"""Settings and registrations of the built-in components: rules, spacings, guidance, thresholds. No torch."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from mdmkit.plugins.component import Component
from mdmkit.recipe.options import opt

__all__ = ["COMPONENTS"]

LIMIT_HELP = "pictures lie in [-limit, limit]"
SCALE_HELP = "one for all levels, or one each, low to high"
ETA_HELP = "0: deterministic; 1: as much fresh noise as the process itself has"
TABLE_HELP = "entries of the schedule's table"


@attrs.frozen
class DDIM:
    """DDIM: deterministic, or with fresh noise."""

    eta: float = opt(0.0, "0: deterministic; 1: as much fresh noise as ddpm", ge=0.0, le=1.0)


@attrs.frozen
class DDPM:
    """Ancestral sampling, as in DDPM."""


@attrs.frozen
class Euler:
    """Euler's method in sigma / alpha; the same as ddim."""


@attrs.frozen
class FlowEuler:
    """Euler's method along the flow; the same as ddim."""


@attrs.frozen
class EulerAncestral:
    """Euler to below the next noise level, and fresh noise up to it; the same as ddim at this eta."""

    eta: float = opt(1.0, ETA_HELP, ge=0.0, le=1.0)


@attrs.frozen
class Heun:
    """Heun's second order in sigma / alpha, as in EDM; two evaluations a step."""

    sigma_max: float = opt(1000.0, "sigma / alpha beyond which a step is Euler's", gt=0.0)


@attrs.frozen
class FlowHeun:
    """Heun's second order along the flow, for any schedule; two evaluations a step."""


@attrs.frozen
class DPMpp2M:
    """DPM-Solver++(2M): second order, one evaluation a step; good pictures in 15 to 30."""


@attrs.frozen
class DPMpp2MSDE:
    """DPM-Solver++(2M) with fresh noise."""

    eta: float = opt(1.0, ETA_HELP, ge=0.0, le=1.0)


@attrs.frozen
class DPMpp3MSDE:
    """DPM-Solver++(3M) with fresh noise, third order in what the network says."""

    eta: float = opt(1.0, ETA_HELP, ge=0.0, le=1.0)


@attrs.frozen
class DPMpp2SAncestral:
    """DPM-Solver++(2S) with ancestral noise; two evaluations a step."""

    eta: float = opt(1.0, ETA_HELP, ge=0.0, le=1.0)


@attrs.frozen
class UniPC:
    """UniPC: a multistep predictor, and a corrector that costs nothing."""

    order: int = opt(2, "of the predictor; 2 with guidance, 3 without", ge=1, le=4)


@attrs.frozen
class LMS:
    """Linear multistep (Adams-Bashforth) in sigma / alpha."""

    order: int = opt(4, "how many slopes are looked at", ge=1, le=6)


@attrs.frozen
class LCM:
    """Multistep consistency sampling, for distilled models: 1 to 8 steps."""


@attrs.frozen
class UniformT:
    """Equal steps in t from 1 to 0."""


@attrs.frozen
class Released:
    """The grid of the released sampler, which starts late."""

    table: int = opt(1000, TABLE_HELP, ge=2)


@attrs.frozen
class Trailing:
    """Equal steps in t, rounded to the entries of a table; from t = 1."""

    table: int = opt(1000, TABLE_HELP, ge=2)


@attrs.frozen
class Leading:
    """Every (table / steps)-th entry of a table from its first, as in DDIM's code; starts late."""

    table: int = opt(1000, TABLE_HELP, ge=2)


@attrs.frozen
class UniformLogSNR:
    """Equal steps in logsnr from t = 1, then to the picture."""

    logsnr_max: float = opt(10.0, "logsnr of level 0 before the last step")


@attrs.frozen
class Karras:
    """EDM's steps: sigma / alpha to a power, denser at low noise."""

    sigma_min: float = opt(0.002, "sigma / alpha of level 0 before the last step", gt=0.0)
    sigma_max: float = opt(80.0, "sigma / alpha of level 0 at the start", gt=0.0)
    rho: float = opt(7.0, "the higher, the denser at low noise", gt=0.0)


@attrs.frozen
class PolyExponential:
    """A power of equal steps in ln(sigma / alpha)."""

    sigma_min: float = opt(0.002, "sigma / alpha of level 0 before the last step", gt=0.0)
    sigma_max: float = opt(80.0, "sigma / alpha of level 0 at the start", gt=0.0)
    rho: float = opt(1.0, "1: equal steps in logsnr; above it denser at low noise", gt=0.0)


@attrs.frozen
class CFG:
    """Classifier-free guidance."""

    scale: float | tuple[float, ...] = opt(5.0, f"1: no guidance; {SCALE_HELP}", ge=0.0)


@attrs.frozen
class CFGPP:
    """CFG++: the guided picture, renoised with the unconditional noise."""

    scale: float | tuple[float, ...] = opt(0.6, f"between both answers, 0 to 1; {SCALE_HELP}", ge=0.0, le=1.0)


@attrs.frozen
class CFGZero:
    """CFG-Zero*: the unconditional answer is scaled to fit, and the first steps wait."""

    scale: float | tuple[float, ...] = opt(5.0, f"as for cfg; {SCALE_HELP}", ge=0.0)
    zero: float = opt(0.04, "share of t at the start in which nothing moves", ge=0.0, lt=1.0)


@attrs.frozen
class APG:
    """Adaptive projected guidance: strong scales without burnt colours."""

    scale: float | tuple[float, ...] = opt(7.5, f"as for cfg; {SCALE_HELP}", ge=0.0)
    eta: float = opt(0.0, "how much the part along the picture counts, which burns colours")
    norm: float | None = opt(15.0, "largest norm of a picture's difference; \"none\": any", gt=0.0)
    momentum: float = opt(-0.5, "of the difference over steps; negative: away from where it was")


@attrs.frozen
class Auto:
    """Autoguidance: leads away from a weaker model, such as an earlier checkpoint or growth stage."""

    weak: str = opt(help="a checkpoint, a run folder or a model folder, of the same pictures and noise")
    scale: float | tuple[float, ...] = opt(2.0, f"1: no guidance; {SCALE_HELP}", ge=0.0)
    weights: str | None = opt(
        None, "ema (averaged) or model (as trained); averaged where there are both", choices=("ema", "model")
    )


@attrs.frozen
class Rescale:
    """Behind another guidance: brings the contrast back towards that of the conditional answer."""

    factor: float = opt(0.7, "0: not at all, 1: to the same deviation", ge=0.0, le=1.0)
    space: str = opt("v", "the prediction space whose deviation counts", choices=("x0", "eps", "v", "flow"))


@attrs.frozen
class Interval:
    """Behind another guidance: only within an interval of noise; outside, one row runs and not two."""

    logsnr: tuple[float, ...] = opt((-3.0, 5.0), "[low, high], of level 0")

    def problems(self) -> Iterator[tuple[str, str]]:
        """What does not fit among these settings."""
        if len(self.logsnr) != 2 or not self.logsnr[0] < self.logsnr[1]:
            yield "logsnr", f"expected [low, high] with low < high, got {list(self.logsnr)}"


@attrs.frozen
class NoThreshold:
    """No threshold."""


@attrs.frozen
class Clip:
    """Static thresholding: cut."""

    limit: float = opt(1.0, LIMIT_HELP, gt=0.0)


@attrs.frozen
class Dynamic:
    """Dynamic thresholding: shrink a picture whose quantile is out of range, then cut."""

    quantile: float = opt(0.995, "of a picture's absolute values", ge=0.0, le=1.0)
    maximum: float = opt(100.0, "the largest divisor", ge=1.0)
    limit: float = opt(1.0, LIMIT_HELP, gt=0.0)


@attrs.frozen
class DynamicIF:
    """Dynamic thresholding as in DeepFloyd IF: a lower quantile, little shrinking."""

    quantile: float = opt(0.95, "of a picture's absolute values", ge=0.0, le=1.0)
    maximum: float = opt(1.5, "the largest divisor", ge=1.0)
    limit: float = opt(1.0, LIMIT_HELP, gt=0.0)


COMPONENTS: list[Component] = [
    Component("sampler", "ddim", DDIM, "mdmkit.sampling.rules:ddim"),
    Component("sampler", "ddpm", DDPM, "mdmkit.sampling.rules:ddpm"),
    Component("sampler", "euler", Euler, "mdmkit.sampling.rules:euler"),
    Component("sampler", "euler_ancestral", EulerAncestral, "mdmkit.sampling.rules:euler_ancestral"),
    Component("sampler", "flow_euler", FlowEuler, "mdmkit.sampling.rules:flow_euler"),
    Component("sampler", "lcm", LCM, "mdmkit.sampling.rules:lcm"),
    Component("sampler", "heun", Heun, "mdmkit.sampling.singlestep:heun"),
    Component("sampler", "flow_heun", FlowHeun, "mdmkit.sampling.singlestep:flow_heun"),
    Component(
        "sampler", "dpmpp_2s_ancestral", DPMpp2SAncestral, "mdmkit.sampling.singlestep:dpmpp_2s_ancestral"
    ),
    Component("sampler", "dpmpp_2m", DPMpp2M, "mdmkit.sampling.multistep:dpmpp_2m"),
    Component("sampler", "dpmpp_2m_sde", DPMpp2MSDE, "mdmkit.sampling.multistep:dpmpp_2m_sde"),
    Component("sampler", "dpmpp_3m_sde", DPMpp3MSDE, "mdmkit.sampling.multistep:dpmpp_3m_sde"),
    Component("sampler", "lms", LMS, "mdmkit.sampling.multistep:lms"),
    Component("sampler", "unipc", UniPC, "mdmkit.sampling.multistep:unipc"),
    Component("spacing", "uniform_t", UniformT, "mdmkit.sampling.spacing:uniform_t"),
    Component("spacing", "released", Released, "mdmkit.sampling.spacing:released"),
    Component("spacing", "trailing", Trailing, "mdmkit.sampling.spacing:trailing"),
    Component("spacing", "leading", Leading, "mdmkit.sampling.spacing:leading"),
    Component("spacing", "uniform_logsnr", UniformLogSNR, "mdmkit.sampling.spacing:uniform_logsnr"),
    Component("spacing", "karras", Karras, "mdmkit.sampling.spacing:karras"),
    Component("spacing", "poly_exponential", PolyExponential, "mdmkit.sampling.spacing:poly_exponential"),
    Component("guidance", "cfg", CFG, "mdmkit.sampling.guidance:CFG"),
    Component("guidance", "cfgpp", CFGPP, "mdmkit.sampling.guidance:CFGPP"),
    Component("guidance", "cfg_zero", CFGZero, "mdmkit.sampling.guidance:CFGZero"),
    Component("guidance", "apg", APG, "mdmkit.sampling.guidance:APG"),
    Component("guidance", "auto", Auto, "mdmkit.sampling.auto:AutoFolder"),
    Component("guidance", "rescale", Rescale, "mdmkit.sampling.guidance:Rescale"),
    Component("guidance", "interval", Interval, "mdmkit.sampling.guidance:Interval"),
    Component("threshold", "none", NoThreshold, "mdmkit.sampling.threshold:none"),
    Component("threshold", "clip", Clip, "mdmkit.sampling.threshold:clip"),
    Component("threshold", "dynamic", Dynamic, "mdmkit.sampling.threshold:dynamic"),
    Component("threshold", "dynamic_if", DynamicIF, "mdmkit.sampling.threshold:dynamic_if"),
]
