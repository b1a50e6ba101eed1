"""Measures of what a model does beside its metrics."""
