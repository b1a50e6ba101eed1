"""Mergers: one model of several experts."""
