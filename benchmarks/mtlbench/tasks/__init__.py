"""Benchmark tasks: real data, a shared trunk, heads, losses, metrics with units, and a default budget. One per file."""
