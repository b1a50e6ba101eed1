"""Mergers: they make one model of several experts."""
