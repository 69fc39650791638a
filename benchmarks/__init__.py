"""Timings beside a peer and beside the arithmetic floor; see ``python -m benchmarks --help``."""
