"""Drawing a counterexample with two parameters: gradients, what they ask for, and the direction found.

Colours keep their contrast on white and on near-black, the background is transparent, and nothing is told by colour
alone: gradients are solid arrows with names, the direction is dashed, harmed tasks say so.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from mtlcore.errors import MissingExtraError
from mtlverify.answer import Answer

GRADIENT, DIRECTION, CONE, INK = "#2f86d1", "#d9701e", "#3a9a5b", "#808080"
CENTIMETRES = 8.0


def conflict(answer: Answer, title: str) -> Any:
    """A matplotlib figure of a two-parameter answer.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: the answer has not two parameters.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "verify", "Drawing counterexamples") from error
    rows = answer.jacobian.double().numpy()
    if rows.shape[1] != 2:
        raise ValueError(f"a picture needs 2 parameters, found {rows.shape[1]}")
    direction = answer.direction.double().numpy()
    reach = 1.25 * max(float(np.linalg.norm(rows, axis=1).max()), 1e-300)
    direction = direction / np.linalg.norm(direction) * 0.8 * reach
    inches = CENTIMETRES / 2.54
    figure = Figure(figsize=(inches, inches))
    axes = figure.add_axes((0.0, 0.0, 1.0, 0.92))
    axes.set(xlim=(-1.45 * reach, 1.45 * reach), ylim=(-1.3 * reach, 1.3 * reach), aspect="equal")
    axes.axis("off")
    figure.text(0.5, 0.98, title, ha="center", va="top", fontsize=8, color=INK)
    _cone(axes, rows, reach)
    names: dict[tuple[float, ...], list[int]] = {}
    for i, row in enumerate(rows):
        names.setdefault(tuple(row), []).append(i + 1)
    for row, tasks in names.items():
        harmed = float(np.dot(row, direction)) < -1e-9 * reach * reach
        text = ", ".join(f"g{t}" for t in tasks) + (" (harmed)" if harmed else "")
        _arrow(axes, np.array(row), GRADIENT, "-", text)
        _boundary(axes, np.array(row), reach)
    _arrow(axes, direction, DIRECTION, "--", "d")
    axes.plot([0], [0], "o", color=INK, markersize=3)
    return figure


def svg(figure: Any, description: str) -> str:
    """The figure as a small SVG with text as text, a description for those who do not see it, and no timestamps."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtlcore"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", buffer.getvalue(), flags=re.DOTALL)
    return text.replace("<defs>", f"<desc>{description}</desc>\n <defs>", 1)


def write(answer: Answer, title: str, description: str, file: Path) -> None:
    """Draw and save."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(svg(conflict(answer, title), description), encoding="utf-8")


def _arrow(axes: Any, tip: Any, colour: str, style: str, text: str) -> None:
    arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.8, "ls": style, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=tip, xytext=(0, 0), arrowprops=arrow)
    away = tip / max(float(np.linalg.norm(tip)), 1e-300)
    where = {"ha": ("right", "center", "left")[int(np.sign(round(away[0], 1))) + 1]}
    where["va"] = ("top", "center", "bottom")[int(np.sign(round(away[1], 1))) + 1]
    axes.annotate(text, xy=tip, xytext=4 * away, textcoords="offset points", color=colour, fontsize=9, **where)


def _boundary(axes: Any, row: Any, reach: float) -> None:
    """The line across a gradient: beyond it that task loses."""
    across = np.array([-row[1], row[0]]) / np.linalg.norm(row) * reach
    axes.plot([-across[0], across[0]], [-across[1], across[1]], ":", color=INK, lw=0.8)


def _cone(axes: Any, rows: Any, reach: float) -> None:
    """The dual cone {x: <g_i, x> >= 0 for all i}, by testing directions every half degree."""
    angles = np.deg2rad(np.arange(0.0, 360.0, 0.5))
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fine = (rays @ rows.T >= -1e-12 * reach).all(axis=1)
    for angle in np.flatnonzero(fine):
        pair = rays[[angle, (angle + 1) % len(rays)]]
        if fine[(angle + 1) % len(rays)]:
            continue
        start = angle
        while fine[start - 1] and angle - start < len(rays):
            start -= 1
        wedge = rays[np.arange(start, angle + 1) % len(rays)] * reach
        wedge = wedge[:: max(1, len(wedge) // 24)] if len(wedge) > 48 else wedge
        corners = np.vstack([[0, 0], wedge, pair[0] * reach])
        axes.fill(corners[:, 0], corners[:, 1], color=CONE, alpha=0.25, lw=0)
        middle = wedge[len(wedge) // 2] * 1.1
        axes.text(middle[0], middle[1], "good for all", color=CONE, fontsize=8, ha="center", va="center")
