"""Figures as inline SVG: coloured by the page's style sheet, so that they follow light, dark and print.

Each function returns one ``<svg>`` element. Nothing here knows what the numbers mean.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from markupsafe import Markup

Numbers = Sequence[float | None]

NARROW = 340
"""Width of what a phone shows. The large figures are drawn twice, and the style sheet shows one of them: shrunk, their
labels could not be read."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """Maps numbers to pixels, linearly or logarithmically."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of a value; values outside land on the edge."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        v = math.log(max(value, self.low)) if self.log else value
        share = 0.5 if high == low else (min(max(v, low), high) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def many(self, values: Numbers) -> list[float]:
        """The pixels of many; NaN where a value is missing."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        v = np.array(values, dtype=float)
        if self.log:
            v = np.log(np.maximum(v, self.low))
        share = np.where(np.isnan(v), np.nan, 0.5) if high == low else (np.clip(v, low, high) - low) / (high - low)
        found: list[float] = (self.start + share * (self.end - self.start)).tolist()
        return found

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers within the axis."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5)):
                found = [s * 10.0**d for d in decades for s in steps if self.low <= s * 10.0**d <= self.high]
                if len(found) >= 2:
                    return found
            return [self.low, self.high]
        return nice_ticks(self.low, self.high, about)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.7)
    first = math.ceil(low / step - 1e-9)
    return [0.0 if i == 0 else i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


_DRAWABLE = 1e150
"""Larger numbers, which only a broken run has, lie beyond the edge: the width of an axis must exist."""


def padded(values: Sequence[float], include: Sequence[float] = (), share: float = 0.06) -> tuple[float, float]:
    """The range of the values and of ``include``, a little widened."""
    everything = [v for v in [*values, *include] if v is not None and abs(v) < _DRAWABLE]
    if not everything:
        return 0.0, 1.0
    low, high = min(everything), max(everything)
    margin = (high - low) * share or abs(low) * 0.1 or 1.0
    return low - margin, high + margin


def short(value: float) -> str:
    """A tick label."""
    text = f"{value:.3g}"
    return text.replace("-", "−")


# --- the strip of intervals beside a table --------------------------------------------------------------------------

STRIP_WIDTH, STRIP_HEIGHT = 300, 26


def strip(
    domain: tuple[float, float],
    estimate: float | None,
    low: float | None,
    high: float | None,
    values: Numbers,
    label: str,
) -> Markup:
    """One row: the runs as small dots, the interval as a line, the mean as a diamond, zero as a thin rule.

    An end of the interval outside the domain is an arrowhead at the edge.
    """
    x = Axis(*domain, 8, STRIP_WIDTH - 8)
    middle = STRIP_HEIGHT / 2
    parts = [_rule(x(t), 0, x(t), STRIP_HEIGHT, "grid") for t in x.ticks()]
    if domain[0] <= 0 <= domain[1]:
        parts.append(_rule(x(0), 0, x(0), STRIP_HEIGHT, "zero"))
    if low is not None and high is not None:
        parts.append(_rule(x(low), middle, x(high), middle, "interval"))
        for end, beyond in ((low, low < domain[0]), (high, high > domain[1])):
            if not beyond:
                parts.append(_rule(x(end), middle - 4, x(end), middle + 4, "interval"))
            else:
                inwards = x(end) + (5 if end == low else -5)
                head = f"M{inwards:.1f} {middle - 4}L{x(end):.1f} {middle}L{inwards:.1f} {middle + 4}"
                parts.append(f'<path class="interval clipped" d="{head}"/>')
    parts += [f'<circle class="run" cx="{x(v):.1f}" cy="{middle}" r="2.6"/>' for v in values if v is not None]
    if estimate is not None:
        cx = x(estimate)
        corners = f"M{cx - 5:.1f} {middle}L{cx:.1f} {middle - 5}L{cx + 5:.1f} {middle}L{cx:.1f} {middle + 5}Z"
        parts.append(f'<path class="mean" d="{corners}"/>')
    return _svg(STRIP_WIDTH, STRIP_HEIGHT, parts, label, "strip")


def strip_axis(domain: tuple[float, float], unit: str) -> Markup:
    """The tick labels under a column of strips."""
    x = Axis(*domain, 8, STRIP_WIDTH - 8)
    parts = [_text(x(t), 11, short(t), "tick", "middle") for t in x.ticks()]
    parts.append(_text(STRIP_WIDTH / 2, 25, unit, "axis-title", "middle"))
    return _svg(STRIP_WIDTH, 30, parts, f"axis: {unit}", "strip")


# --- small multiples ------------------------------------------------------------------------------------------------

PANEL_WIDTH, PANEL_HEIGHT = 216, 138


def panel(
    steps: Sequence[float],
    own: Mapping[str, Numbers],
    others: Sequence[tuple[Sequence[float], Numbers]],
    domain: tuple[float, float],
    last_step: float,
    label: str,
    log: bool = False,
    zero: bool = False,
) -> Markup:
    """Lines of one method in colour over the lines of all the others in grey, on axes shared by all panels."""
    x = Axis(0, last_step, 34, PANEL_WIDTH - 8)
    y = Axis(*domain, PANEL_HEIGHT - 20, 8, log=log)
    parts = []
    for t in y.ticks(4):
        parts.append(_rule(x.start, y(t), x.end, y(t), "zero" if zero and t == 0 else "grid"))
        parts.append(_text(x.start - 5, y(t) + 3.5, short(t), "tick", "end"))
    parts.append(_text(x.start, PANEL_HEIGHT - 5, "0", "tick", "start"))
    parts.append(_text(x.end, PANEL_HEIGHT - 5, f"{last_step:g} steps", "tick", "end"))
    parts += [_line(s, values, x, y, "other") for s, values in others]
    parts += [_line(steps, values, x, y, f"own own-{i}") for i, values in enumerate(own.values())]
    return _svg(PANEL_WIDTH, PANEL_HEIGHT, parts, label, "panel")


# --- scatter --------------------------------------------------------------------------------------------------------


def scatter(
    points: Mapping[str, tuple[float, float]],
    x_title: str,
    y_title: str,
    label: str,
    reference: float | None = None,
    y_zero: bool = True,
) -> Markup:
    """Named points; labels are moved apart vertically so that none hides another. Drawn for two widths."""
    return Markup("").join(
        _scatter(points, (x_title, y_title), label, reference, y_zero, width) for width in (640, NARROW)
    )


def _scatter(
    points: Mapping[str, tuple[float, float]],
    titles: tuple[str, str],
    label: str,
    reference: float | None,
    y_zero: bool,
    width: int,
) -> Markup:
    height, narrow = (380 if width == NARROW else 300), width == NARROW
    ends = padded([p[0] for p in points.values()], [1.0] if reference is None else [reference], 0.1)
    x = Axis(*ends, 48 if narrow else 56, width - (12 if narrow else 110))
    y = Axis(*padded([p[1] for p in points.values()], [0.0] if y_zero else [], 0.1), height - 44, 12)
    parts = []
    for t in x.ticks(3 if narrow else 6):
        parts.append(_rule(x(t), y.end, x(t), y.start, "grid"))
        parts.append(_text(x(t), height - 28, short(t), "tick", "middle"))
    for t in y.ticks(5):
        parts.append(_rule(x.start, y(t), x.end, y(t), "zero" if t == 0 else "grid"))
        parts.append(_text(x.start - 7, y(t) + 4, short(t), "tick", "end"))
    return _named(points, (x, y), (height - 12, *titles), parts, (width, height, label))


def _named(
    points: Mapping[str, tuple[float, float]],
    axes: tuple[Axis, Axis],
    titles: tuple[float, str, str],
    parts: list[str],
    frame: tuple[int, int, str],
) -> Markup:
    """The figure with the titles of its axes (and where the lower one stands) and its named points."""
    (x, y), (below, x_title, y_title), (width, height, label) = axes, titles, frame
    rows = textwrap.wrap(x_title, 46) if width == NARROW else [x_title]
    middle = (x.start + x.end) / 2
    parts += [_text(middle, below + 13 * i, row, "axis-title", "middle") for i, row in enumerate(rows)]
    centre = (y.start + y.end) / 2
    parts.append(
        f'<text class="axis-title" text-anchor="middle" transform="translate(14 {centre:.0f}) rotate(-90)">'
        f"{escape(y_title)}</text>"
    )
    parts += _labelled({name: (x(px), y(py)) for name, (px, py) in points.items()}, width, y.start)
    return _svg(width, height + 13 * (len(rows) - 1), parts, label, _kind(width))


def _kind(width: int) -> str:
    return "narrow" if width == NARROW else "wide"


def lines(
    series: Mapping[str, tuple[Sequence[float], Numbers]],
    x_title: str,
    y_title: str,
    label: str,
    y_domain: tuple[float, float],
    marks: bool = False,
) -> Markup:
    """A few named lines in one frame, each with its name at its end and a dash pattern of its own. Drawn for two
    widths."""
    return Markup("").join(_lines(series, (x_title, y_title), label, y_domain, marks, width) for width in (640, NARROW))


def _lines(
    series: Mapping[str, tuple[Sequence[float], Numbers]],
    titles: tuple[str, str],
    label: str,
    y_domain: tuple[float, float],
    marks: bool,
    width: int,
) -> Markup:
    height, (x_title, y_title), narrow = 320, titles, width == NARROW
    xs = [v for s, _ in series.values() for v in s]
    x = Axis(min(xs), max(xs), 40 if narrow else 56, width - 120)
    y = Axis(*y_domain, height - 44, 12)
    parts = []
    for t in x.ticks(3 if narrow else 6):
        parts.append(_rule(x(t), y.end, x(t), y.start, "grid"))
        parts.append(_text(x(t), height - 28, short(t), "tick", "middle"))
    for t in y.ticks(5):
        parts.append(_rule(x.start, y(t), x.end, y(t), "grid"))
        parts.append(_text(x.start - 7, y(t) + 4, short(t), "tick", "end"))
    parts.append(_text((x.start + x.end) / 2, height - 8, x_title, "axis-title", "middle"))
    parts.append(_text(x.start, 8, y_title, "axis-title", "start"))
    for i, name in enumerate(series):
        parts.append(_line(*series[name], x, y, f"own own-{i % 10}"))
        if marks:
            parts += [
                f'<circle class="dot" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"/>'
                for a, b in zip(*series[name])
                if b is not None
            ]
    places = _apart({name: y(_last(values)) + 4 for name, (_, values) in series.items()}, y.start + 4)
    for i, name in enumerate(series):
        parts.append(_rule(x.end + 6, places[name] - 4, x.end + 22, places[name] - 4, f"own own-{i % 10}"))
        parts.append(_text(x.end + 26, places[name], name, "name", "start"))
    return _svg(width, height, parts, label, _kind(width))


def _apart(wanted: Mapping[str, float], lowest: float, gap: float = 14.0) -> dict[str, float]:
    """Heights of names, as near to the wanted ones as they can be without hiding one another."""
    places: dict[str, float] = {}
    free = -math.inf
    for name in sorted(wanted, key=wanted.__getitem__):
        places[name] = max(wanted[name], free)
        free = places[name] + gap
    for name in reversed(places):
        places[name] = min(places[name], lowest)
        lowest = places[name] - gap
    return places


def front(
    points: Mapping[str, tuple[float, float]],
    joined: Sequence[Sequence[str]],
    x_title: str,
    y_title: str,
    label: str,
) -> Markup:
    """Named points in the plane of two metrics; each group in ``joined`` is connected by a line, in its order. Drawn
    for two widths."""
    return Markup("").join(_front(points, joined, (x_title, y_title), label, width) for width in (480, NARROW))


def _front(
    points: Mapping[str, tuple[float, float]],
    joined: Sequence[Sequence[str]],
    titles: tuple[str, str],
    label: str,
    width: int,
) -> Markup:
    height, narrow = 340, width == NARROW
    x = Axis(*padded([p[0] for p in points.values()], share=0.12), 64, width - (12 if narrow else 30))
    y = Axis(*padded([p[1] for p in points.values()], share=0.12), height - 46, 12)
    parts = []
    for t in x.ticks(3 if narrow else 5):
        parts.append(_rule(x(t), y.end, x(t), y.start, "grid"))
        parts.append(_text(x(t), height - 30, short(t), "tick", "middle"))
    for t in y.ticks(5):
        parts.append(_rule(x.start, y(t), x.end, y(t), "grid"))
        parts.append(_text(x.start - 7, y(t) + 4, short(t), "tick", "end"))
    for i, group in enumerate(joined):
        if len(group) > 1:
            path = "L".join(f"{x(points[name][0]):.1f} {y(points[name][1]):.1f}" for name in group)
            parts.append(f'<path class="own own-{i}" d="M{path}"/>')
    return _named(points, (x, y), (height - 12, *titles), parts, (width, height, label))


def _labelled(points: Mapping[str, tuple[float, float]], width: float, bottom: float) -> list[str]:
    """Dots with names; each name takes the nearest free place beside its dot, and a thin line if that is far. Above
    ``bottom``, where the numbers of the axis are."""
    taken = [(cx - 5, cy - 5, cx + 5, cy + 5) for cx, cy in points.values()]
    parts = []
    for name, (cx, cy) in sorted(points.items(), key=lambda item: (item[1][1], item[1][0])):
        wide = 6.6 * len(name)
        best = None
        for shift in (0, *(s * 13 * i for i in range(1, 13) for s in (-1, 1))):
            for left in (cx + 9, cx - 9 - wide):
                box = (left, cy + shift - 6, left + wide, cy + shift + 6)
                inside = box[0] >= 0 and box[2] <= width and box[1] >= 0 and box[3] <= bottom
                if inside and not any(_overlap(box, other) for other in taken):
                    best = best or (left, shift, box)
            if best:
                break
        left, shift, box = best or (cx + 9, 0, (cx, cy, cx, cy))
        taken.append(box)
        if shift:
            end = left - 1 if left > cx else left + wide + 1
            parts.append(_rule(cx, cy, end, cy + shift, "leader"))
        parts.append(f'<circle class="dot" cx="{cx:.1f}" cy="{cy:.1f}" r="4.5"/>')
        parts.append(_text(left, cy + shift + 4, name, "name", "start"))
    return parts


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


# --- elements -------------------------------------------------------------------------------------------------------


def _svg(width: float, height: float, parts: Sequence[str], label: str, kind: str) -> Markup:
    body = "".join(parts)
    return Markup(  # every text in it went through escape
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(label)}">{body}</svg>'
    )


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(steps: Sequence[float], values: Numbers, x: Axis, y: Axis, kind: str) -> str:
    """A polyline; a missing value interrupts it."""
    path, pen = [], "M"
    for px, py in zip(x.many(steps), y.many(values)):
        if py != py:  # NaN
            pen = "M"
            continue
        path.append(f"{pen}{px:.1f} {py:.1f}")
        pen = "L"
    return f'<path class="{kind}" d="{"".join(path)}"/>'


def _last(values: Numbers) -> float:
    return next((v for v in reversed(values) if v is not None), 0.0)


# --- critical differences -------------------------------------------------------------------------------------------


def critical_difference(ranks: Mapping[str, float], difference: float) -> Markup:
    """Mean ranks on a line, best on the left; a bar joins methods whose ranks are not further apart than
    ``difference`` (Demsar 2006). Drawn for two widths."""
    return Markup("").join(_differences(ranks, difference, width) for width in (640, NARROW))


def _differences(ranks: Mapping[str, float], difference: float, width: int) -> Markup:
    names = sorted(ranks, key=ranks.__getitem__)
    bars = groups([ranks[n] for n in names], difference)
    # On a phone all names stand on the right, those of the best methods lowest: no line crosses another.
    half, narrow = (0 if width == NARROW else -(-len(names) // 2)), width == NARROW
    top = 58 + 9 * len(bars)
    height = top + 17 * (len(names) - half) + 8
    x = Axis(1.0, float(max(2, len(names))), 10 if narrow else 170, width - 170)
    parts = [_rule(x.start, 40, x.end, 40, "zero")]
    for t in range(1, int(x.high) + 1, max(1, len(names) // (6 if narrow else 12))):
        parts += [_rule(x(t), 35, x(t), 40, "zero"), _text(x(t), 31, str(t), "tick", "middle")]
    reach, said = x(min(1.0 + difference, x.high)), f"critical difference {difference:.2f}"
    parts.append(_rule(x.start, 12, reach, 12, "interval"))
    parts.append(_text(reach + 8, 16, said, "tick", "start") if narrow else _text(x.start - 8, 16, said, "tick", "end"))
    for i, (first, last) in enumerate(bars):
        y = 50 + 9 * i
        parts.append(_rule(x(ranks[names[first]]) - 3, y, x(ranks[names[last]]) + 3, y, "interval"))
    for i, name in enumerate(names):
        left = i < half
        y = top + 17 * (i if left else len(names) - 1 - i)
        end = x.start - 12 if left else x.end + 12
        parts += [_rule(x(ranks[name]), 40, x(ranks[name]), y, "leader"), _rule(x(ranks[name]), y, end, y, "leader")]
        label = f"{name} {ranks[name]:.1f}" if left else f"{ranks[name]:.1f} {name}"
        parts.append(_text(end + (-4 if left else 4), y + 4, label, "name", "end" if left else "start"))
    return _svg(width, height, parts, "critical difference of mean ranks", _kind(width))


def groups(ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """First and last place of each longest run of sorted ranks that are within ``difference`` of one another."""
    spans: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(i for i, other in enumerate(ranks) if other - rank <= difference)
        if last > first and (not spans or last > spans[-1][1]):
            spans.append((first, last))
    return spans
