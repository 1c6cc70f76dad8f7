"""Measures over drawn pictures and over the network, sample grids and the run report."""

from .metric import Metric, ModelMetric, PictureMetric
from .prompt_accuracy import PromptAccuracy

__all__ = ["Metric", "ModelMetric", "PictureMetric", "PromptAccuracy"]
