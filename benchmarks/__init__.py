"""Benchmarks of speed and memory, relative to a baseline of the same run: `python -m benchmarks`."""
