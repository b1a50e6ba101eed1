"""Explorers: models for preferences between the tasks."""
