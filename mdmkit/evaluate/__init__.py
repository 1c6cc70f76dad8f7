"""Measures over drawn pictures and over the network, sample grids and the run report."""

from .metric import ComparingMetric, Metric, ModelMetric, PictureMetric
from .prompt_accuracy import PromptAccuracy

__all__ = ["ComparingMetric", "Metric", "ModelMetric", "PictureMetric", "PromptAccuracy"]
