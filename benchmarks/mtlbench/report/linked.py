"""Every table of the page as a CSV file, in a link that carries it: no script, no second file, no request."""

from __future__ import annotations

import base64
import csv
import html
import io
import itertools
import re

_TABLE = re.compile(r"<table>(.*?)</table></div>", re.S)
_ROW = re.compile(r"<tr\b.*?</tr>", re.S)
_CELL = re.compile(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", re.S)
_NOT_TEXT = re.compile(r"<svg\b.*?</svg>|<[^>]*>", re.S)
_MINUS = re.compile(r"−(?=\d)")
_MISSING = "–"


def with_files(page: str) -> str:
    """The page with such a link below each table. What it holds is what the table shows, in its rounding; `mtl bench
    export` writes all digits."""
    count = itertools.count(1)

    def linked(found: re.Match[str]) -> str:
        content = base64.b64encode(as_csv(found[1]).encode("utf-8", "backslashreplace")).decode()
        href = f"data:text/csv;charset=utf-8;base64,{content}"
        return f'{found[0]}\n<p class="file"><a download="table-{next(count)}.csv" href="{href}">as CSV</a></p>'

    return _TABLE.sub(linked, page)


def as_csv(table: str) -> str:
    """The rows of a table that say something, as text."""
    out = io.StringIO()
    rows = ([_text(cell) for cell in _CELL.findall(row)] for row in _ROW.findall(table))
    csv.writer(out, lineterminator="\n").writerows(row for row in rows if any(row))
    return out.getvalue()


def _text(cell: str) -> str:
    text = " ".join(html.unescape(_NOT_TEXT.sub(" ", cell)).split())
    return "" if text == _MISSING else _MINUS.sub("-", text)
