"""Puts numbers and figures into one HTML file that needs nothing else: no script, no font, no request."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shlex
from pathlib import Path

import jinja2

from mtlbench.measures.names import OF_FEATURES
from mtlbench.records import plain, writing
from mtlbench.report import drawings
from mtlbench.report.linked import with_files
from mtlbench.report.model import Report
from mtlbench.report.summary import report
from mtlbench.statistics import SMALL
from mtlbench.suite import SINGLE_TASK


def write(folder: Path, page: Path, numbers: Path | None = None) -> Path:
    """Write the report over ``folder`` to ``page`` and, if wanted, its numbers as JSON.

    Raises:
        ConfigurationError: the folder does not exist, or a file cannot be written.
    """
    found = report(folder)
    if numbers is not None:
        _write(numbers, json.dumps(plain(dataclasses.asdict(found)), indent=1) + "\n")
    _write(page, render(found, folder))
    return page


def _write(path: Path, text: str) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Half of a surrogate pair (from a file name, in an error message) is not a character that UTF-8 could write.
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def render(found: Report, folder: Path) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mtlbench.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"fixed": _fixed, "signed": _signed, "p": _p, "percent": _percent, "amount": _amount}
    environment.filters["quoted"] = shlex.quote
    style = environment.loader.get_source(environment, "page.css")[0]  # type: ignore[union-attr]
    page = environment.get_template("page.html.j2").render(
        **{field.name: getattr(found, field.name) for field in dataclasses.fields(found)},
        style=style,
        written=datetime.datetime.now(datetime.timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
        folder=str(folder),
        single=SINGLE_TASK,
        small=SMALL,
        shares=(*OF_FEATURES, "magnitude_similarity", "condition"),
        drawn=[drawings.of_task(task) for task in found.tasks],
        overall_drawn=drawings.of_all(found.overall) if found.overall else None,
    )
    return with_files(page)


# --- filters ----------------------------------------------------------------------------------------------------------


def _fixed(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else _minus(f"{value:.{digits}f}")


def _signed(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}"
    return _minus(text) if float(text) else text[1:]  # a rounded zero has no sign


def _amount(value: float | None) -> str:
    """Two decimals for ordinary numbers, fewer for large ones, two significant digits for tiny ones."""
    if value is None:
        return "–"
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2
    return _minus(f"{value:.{digits}f}" if size >= 0.1 or size == 0 else f"{value:.2g}")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _p(value: float | None) -> str:
    return "–" if value is None else ("< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}")
