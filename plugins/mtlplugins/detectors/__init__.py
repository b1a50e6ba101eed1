"""Conflict detectors: stateless, scale-free, from the Gramian alone."""
