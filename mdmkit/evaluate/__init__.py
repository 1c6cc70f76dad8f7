"""Measures over drawn pictures, sample grids and the run report."""

from .prompt_accuracy import Metric, PromptAccuracy

__all__ = ["Metric", "PromptAccuracy"]
