"""Benchmarks: real tasks, a fair protocol, raw records, statistics, the report, and the speed suite."""
