"""Conflict detectors: they have no state, and do not depend on the scale of the Jacobian."""
