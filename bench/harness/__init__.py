"""What the benchmarks share: interleaved timing, checks, baselines and the file of results."""
