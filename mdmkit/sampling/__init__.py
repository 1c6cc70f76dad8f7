"""Sampling: update rules over a pyramid, guidance, thresholds."""

from .denoise import Denoise, Denoised, Denoiser, PairedDenoise
from .guidance import CFG, Guidance
from .rules import Rule, ddim, ddpm
from .sample import sample_pyramid
from .spacing import Spacing, released, uniform_t
from .threshold import Threshold, clip, dynamic, dynamic_if, none, thresholded

__all__ = [
    "CFG",
    "Denoise",
    "Denoised",
    "Denoiser",
    "Guidance",
    "PairedDenoise",
    "Rule",
    "Spacing",
    "Threshold",
    "clip",
    "ddim",
    "ddpm",
    "dynamic",
    "dynamic_if",
    "none",
    "released",
    "sample_pyramid",
    "thresholded",
    "uniform_t",
]
