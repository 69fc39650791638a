"""Timings beside a peer and beside the arithmetic floor; ``make bench`` runs those of docs/benchmarks.md."""
