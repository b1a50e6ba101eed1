"""Explorers: they train models for many preferences between the tasks."""
