"""Teleports: exact symmetries of a network, and the approximate low-rank jump of COST."""
