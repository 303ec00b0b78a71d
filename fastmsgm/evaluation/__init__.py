"""Evaluation: distances between sets of samples, normality, and plots."""
