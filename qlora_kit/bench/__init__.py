"""Benchmarks: the kit against the libraries, as ratios within one run."""
