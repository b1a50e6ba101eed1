"""Docstrings are written to be read in an editor; this makes them sound reStructuredText when the site is built.

|g_i| is a length, not a substitution; an indented formula keeps its lines; a role that names something without a page
is shown as code.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SECTION = re.compile(r"^\s*(Args|Arguments|Raises|Returns|Yields|Example|Examples|Note|Attributes):\s*$")
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?\.?([^`]+)`")
# Left alone: code between backquotes.
CODE = re.compile(r"(``[^`]*``|`[^`]*`)")


def _line(line: str) -> str:
    line = ROLE.sub(lambda m: f"``{m[1].lstrip('.')}``", line)
    parts = CODE.split(line)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?<!\\)\|", r"\\|", parts[i])
        parts[i] = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", parts[i])  # w_ would be a link
        parts[i] = re.sub(r"(?<![*\w])\*(?=\w+\b(?!\*))(?![^*]*\w\*)", r"\\*", parts[i])  # a lone star
    return "".join(parts)


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def sound(lines: list[str]) -> list[str]:
    """The lines of a docstring, with indented formulas as literal blocks."""
    out: list[str] = []
    literal = -1  # indentation of the text above the literal block that we are in
    section = -1  # indentation of the section (Args: ...) that we are in
    for line in lines:
        if line.strip() and indent(line) <= literal:
            literal = -1
        if line.strip() and indent(line) <= section:
            section = -1
        if literal >= 0:
            out.append(line)
            continue
        above = next((o for o in reversed(out) if o.strip()), "")
        blank = bool(out) and not out[-1].strip()
        if SECTION.match(line):
            section = indent(line)
        elif line.strip() and section < 0 and blank and above and indent(line) > indent(above):
            literal = indent(above)
            if not above.rstrip().endswith("::") and not re.match(r"\s*([-*]|\d+\.) ", above):
                out += [" " * indent(above) + "::", ""]
            out.append(line)
            continue
        if line.rstrip().endswith("::"):
            literal = indent(line)
        out.append(_line(line))
    return out


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = sound(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process, priority=100)  # before napoleon reads the sections
    return {"parallel_read_safe": True, "parallel_write_safe": True}
