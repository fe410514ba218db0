"""Benchmarks: each figure beside a reference of the same run. See `python -m benchmarks -h`."""
