"""Evaluation: distances between sets of samples, reports of them, normality, and plots."""

from fastmsgm.evaluation.arguments import METRICS, default_metrics
from fastmsgm.evaluation.comparison import evaluate
from fastmsgm.evaluation.report import Figure, Report

__all__ = ["METRICS", "Figure", "Report", "default_metrics", "evaluate"]
