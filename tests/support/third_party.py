"""Distributions made on the spot: what pip would have installed, without pip."""

from __future__ import annotations

import textwrap
from pathlib import Path


def install(site: Path, distribution: str, entry_point: str, files: dict[str, str], version: str = "0.1") -> None:
    """Write modules and a ``dist-info`` with one entry point of the group ``mtlcore`` into ``site``."""
    name, _, module = entry_point.partition("=")
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[mtlcore]\n{name.strip()} = {module.strip()}\n")
    for path, text in files.items():
        file = site / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))


GOOD = {
    "good_mtl/__init__.py": """
        from mtlcore import hookimpl

        @hookimpl
        def mtlcore_register_aggregators(register):
            register("third-party-mean", "good_mtl.method:ThirdParty")
    """,
    "good_mtl/method.py": """
        from dataclasses import dataclass
        import torch
        from mtlcore import Aggregation, Aggregator, Needs, number

        @dataclass(frozen=True)
        class ThirdParty(Aggregator):
            scale: float = number(1.0, low=0.0, open_low=True)
            needs = Needs.GRAMIAN
            claims = frozenset({"permutation-equivariant", "positively-homogeneous"})

            def aggregate(self, view, state):
                k = view.gramian.shape[0]
                return Aggregation(weights=torch.full((k,), self.scale / k), state=state)
    """,
}
BROKEN = {"broken_mtl.py": "import a_module_that_is_not_there\n"}
CLASHING = {
    "clashing_mtl.py": """
        from mtlcore import hookimpl

        @hookimpl
        def mtlcore_register_aggregators(register):
            register("mgda", "good_mtl.method:ThirdParty")
    """
}
LAZILY_BROKEN = {
    "lazily_broken_mtl.py": """
        from mtlcore import hookimpl

        @hookimpl
        def mtlcore_register_detectors(register):
            register("lazily-broken", "lazily_broken_method:Detector")
    """,
    "lazily_broken_method.py": """
        class Detector:
            pass

        raise OSError("a library is missing")
    """,
}
CLAIMS_TOO_MUCH = {
    "claims_mtl/__init__.py": """
        from mtlcore import hookimpl

        @hookimpl
        def mtlcore_register_aggregators(register):
            register("third-party-boast", "claims_mtl.method:Boast")
    """,
    "claims_mtl/method.py": """
        from dataclasses import dataclass
        import torch
        from mtlcore import Aggregation, Aggregator, Needs

        @dataclass(frozen=True)
        class Boast(Aggregator):
            needs = Needs.GRAMIAN
            claims = frozenset({"non-conflicting"})

            def aggregate(self, view, state):
                return Aggregation(weights=torch.ones(view.n_tasks, dtype=torch.float64), state=state)
    """,
}
BAD_CERTIFIER = {
    "liar_mtl.py": """
        from mtlcore import hookimpl

        @hookimpl(tryfirst=True)
        def mtlcore_certified(kind, name):
            raise ValueError("no idea")
    """
}
HALF_CERTIFIER = {
    "half_mtl.py": """
        from mtlcore import hookimpl

        @hookimpl(tryfirst=True)
        def mtlcore_certified(kind, name):
            return {"passed": True}
    """
}
