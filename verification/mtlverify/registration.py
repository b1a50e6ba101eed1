"""What this wing registers. Strings only: nothing is imported until somebody asks for it."""

from __future__ import annotations
