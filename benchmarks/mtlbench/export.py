"""The tables of a report as files, and its figures as SVG and PDF."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from mtlbench.records import writing
from mtlbench.report.figure_files import write_figures
from mtlbench.report.model import Overall, Report, TaskReport
from mtlbench.report.summary import report
from mtlcore.errors import ConfigurationError, did_you_mean

FORMATS = ("csv", "markdown", "latex", "parquet")
_SUFFIX = {"csv": "csv", "markdown": "md", "latex": "tex", "parquet": "parquet"}


def export(folder: Path, out: Path, form: str) -> list[Path]:
    """Write every table of the report over ``folder`` to ``out`` in one format, and the figures beside them.

    Tables: ``runs`` (one row a run), and for each task ``TASK-delta-m``, ``TASK-metrics``, ``TASK-metrics-versus``,
    ``TASK-cost``, ``TASK-identifiers``; with several tasks ``overall``.

    Raises:
        ConfigurationError: there is no such format, nothing to export, or a file cannot be written.
    """
    if form not in FORMATS:
        raise ConfigurationError(f"there is no format {form!r}. {did_you_mean(form, FORMATS, 'Allowed')}")
    found = report(folder)
    if not found.tasks:
        raise ConfigurationError(f"there is no finished run in {str(folder)!r}, so there is nothing to export.")
    written = []
    for name, frame in tables(found).items():
        path = out / f"{_file_name(name)}.{_SUFFIX[form]}"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _WRITERS[form](frame, path)
        written.append(path)
    return written + write_figures(found, out / "figures")


def tables(found: Report) -> dict[str, pd.DataFrame]:
    """{name: table} of a report."""
    out = {"runs": pd.concat([_runs(task) for task in found.tasks], ignore_index=True)}
    for task in found.tasks:
        out[f"{task.name}-delta-m"] = _deltas(task)
        out[f"{task.name}-metrics"] = _metrics(task)
        out[f"{task.name}-metrics-versus"] = _metrics_versus(task)
        out[f"{task.name}-cost"] = _cost(task)
        out[f"{task.name}-identifiers"] = pd.DataFrame([dataclasses.asdict(row) for row in task.identifiers])
    if found.overall is not None:
        out["overall"] = _overall(found.overall)
    return {name: frame for name, frame in out.items() if len(frame)}


def _runs(task: TaskReport) -> pd.DataFrame:
    rows = [
        {"task": task.name, "method": m.name, "seed": seed, "delta_m": value}
        for m in task.scored()
        if m.delta_m is not None
        for seed, value in m.delta_m.values.items()
    ]
    return pd.DataFrame(rows, columns=["task", "method", "seed", "delta_m"])


def _deltas(task: TaskReport) -> pd.DataFrame:
    rows = []
    for m in task.scored():
        d, c = m.delta_m, m.versus_reference
        assert d is not None
        rows.append(
            {
                "method": m.name,
                "runs": d.n,
                "delta_m": d.estimate,
                "low": d.low,
                "high": d.high,
                "interquartile_mean": d.interquartile_mean,
                "difference": c.difference.estimate if c else None,
                "p_holm": c.p_holm if c else None,
                "verdict": c.verdict if c else None,
                "probability_of_improvement": c.probability_of_improvement if c else None,
                "guarantees": ", ".join(m.guarantees),
            }
        )
    return pd.DataFrame(rows)


def _metrics(task: TaskReport) -> pd.DataFrame:
    rows = [
        {"method": m.name, **{key: None if v is None else v.estimate for key, v in m.metrics.items()}}
        for m in task.methods
    ]
    return pd.DataFrame(rows)


def _metrics_versus(task: TaskReport) -> pd.DataFrame:
    """Every metric against the reference, in percent of it; lower is better."""
    rows = [
        {
            "method": m.name,
            "metric": key,
            "difference_percent": c.difference.estimate,
            "p_holm": c.p_holm,
            "verdict": c.verdict,
        }
        for m in task.scored()
        for key, c in m.metrics_versus_reference.items()
    ]
    return pd.DataFrame(rows)


def _cost(task: TaskReport) -> pd.DataFrame:
    names = ("seconds_per_step", "ratio_to_sum", "peak_memory_mb", "memory_above_start_mb", "device_memory_mb")
    rows = [
        {"method": m.name, **{n: getattr(m, n) for n in names}, "gradients": m.gradient_source} for m in task.methods
    ]
    return pd.DataFrame(rows)


def _overall(overall: Overall) -> pd.DataFrame:
    rows = [
        {
            "method": m.name,
            "runs": m.n,
            "delta_m": m.delta_m.estimate,
            "low": m.delta_m.low,
            "high": m.delta_m.high,
            "interquartile_mean": m.interquartile_mean.estimate,
            "p_holm": m.versus_reference.p_holm if m.versus_reference else None,
            "verdict": m.versus_reference.verdict if m.versus_reference else None,
            "probability_of_improvement": m.probability_of_improvement,
            "mean_rank": m.mean_rank,
        }
        for m in overall.methods
    ]
    return pd.DataFrame(rows)


def _file_name(name: str) -> str:
    """Without what a file system may not like."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "table"


def _csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False, encoding="utf-8", errors="backslashreplace")


def _markdown(frame: pd.DataFrame, path: Path) -> None:
    cells = [[_cell(v).replace("|", "\\|") for v in row] for row in frame.itertuples(index=False)]
    lines = [list(map(str, frame.columns)), ["---"] * len(frame.columns), *cells]
    _text(path, "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")


def _latex(frame: pd.DataFrame, path: Path) -> None:
    out = io.StringIO()
    columns = "".join("r" if pd.api.types.is_numeric_dtype(t) else "l" for t in frame.dtypes)
    out.write(f"\\begin{{tabular}}{{{columns}}}\n\\hline\n{' & '.join(map(_tex, frame.columns))} \\\\\n\\hline\n")
    for row in frame.itertuples(index=False):
        out.write(" & ".join(_tex(_cell(v)) for v in row) + " \\\\\n")
    out.write("\\hline\n\\end{tabular}\n")
    _text(path, out.getvalue())


def _parquet(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path, index=False)


_WRITERS: Mapping[str, Callable[[pd.DataFrame, Path], None]] = {
    "csv": _csv,
    "markdown": _markdown,
    "latex": _latex,
    "parquet": _parquet,
}


def _cell(value: object) -> str:
    if value is None or value != value:  # NaN
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split())


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
