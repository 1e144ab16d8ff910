"""Timings of this project's code against other ways of computing the same: `python -m benchmarks.losses`."""
