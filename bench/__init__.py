"""Benchmarks (``pytest bench/ --benchmark``) and experiments (``python -m bench.NAME``)."""
