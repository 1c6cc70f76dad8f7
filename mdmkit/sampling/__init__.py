"""Sampling: update rules over a pyramid, guidance, thresholds."""

from .auto import Auto
from .denoise import Answers, Denoise, Denoised, Denoiser, PairedDenoise
from .edit import Known, Start, known_frames, known_low, known_region
from .guidance import APG, CFG, CFGPP, CFGZero, Guidance, Interval, Rescale
from .multistep import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, lms, unipc
from .regions import Regional, Regions, shares_of
from .rules import Rule, ddim, ddpm, euler, euler_ancestral, flow_euler, lcm
from .sample import sample_pyramid
from .seeds import Between
from .singlestep import dpmpp_2s_ancestral, flow_heun, heun
from .spacing import Spacing, karras, leading, poly_exponential, released, trailing, uniform_logsnr, uniform_t
from .threshold import Threshold, clip, dynamic, dynamic_if, none, thresholded
from .windows import Windows

__all__ = [
    "APG",
    "CFG",
    "CFGPP",
    "Answers",
    "Auto",
    "Between",
    "CFGZero",
    "Denoise",
    "Denoised",
    "Denoiser",
    "Guidance",
    "Interval",
    "Known",
    "PairedDenoise",
    "Regional",
    "Regions",
    "Rescale",
    "Rule",
    "Spacing",
    "Start",
    "Threshold",
    "Windows",
    "clip",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s_ancestral",
    "dpmpp_3m_sde",
    "dynamic",
    "dynamic_if",
    "euler",
    "euler_ancestral",
    "flow_euler",
    "flow_heun",
    "heun",
    "karras",
    "known_frames",
    "known_low",
    "known_region",
    "lcm",
    "leading",
    "lms",
    "none",
    "poly_exponential",
    "released",
    "sample_pyramid",
    "shares_of",
    "thresholded",
    "trailing",
    "uniform_logsnr",
    "uniform_t",
    "unipc",
]
