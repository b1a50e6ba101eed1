"""Gradient aggregators and loss balancers, one per file, named after the method."""
