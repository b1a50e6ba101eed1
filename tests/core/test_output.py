"""What a command prints is readable at every width: nothing is cut off, and nothing is folded twice."""

from __future__ import annotations

import pytest

from mtlcore import glance
from mtlcore.output import prose
from mtlcore.registry import registry

TEXT = """\
One sentence that is written
over two lines of ``source``, see :mod:`.there`.

    d = J^T w   subject to   w >= 0 ,
    w = a formula keeps its lines, however long it is, for it would not be read otherwise

- an item that goes on
  in the next line
- another one

Args:
    alpha: an exponent, whose
        description has two lines.
    beta: a rate.

Raises:
    LossError: never.
"""


def test_paragraphs_are_filled_and_formulas_are_left():
    assert prose(TEXT, 200).splitlines() == [
        "One sentence that is written over two lines of source, see there.",
        "",
        "    d = J^T w   subject to   w >= 0 ,",
        "    w = a formula keeps its lines, however long it is, for it would not be read otherwise",
        "",
        "- an item that goes on in the next line",
        "- another one",
        "",
        "Args:",
        "    alpha: an exponent, whose description has two lines.",
        "    beta: a rate.",
        "",
        "Raises:",
        "    LossError: never.",
    ]


@pytest.mark.parametrize("width", [30, 50, 80])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(width):
    filled = prose(TEXT, width)
    assert filled.split() == prose(TEXT, 200).split()
    formulas = [line for line in TEXT.splitlines() if line.startswith("    ") and "=" in line]
    assert all(len(line) <= width or line in formulas for line in filled.splitlines())
    assert "    alpha: an exponent, whose\n        description" in prose(TEXT, 30)


def test_a_list_says_in_words_what_a_plugin_is():
    """Not with an equation, as the docstrings of classes begin."""
    said = {
        e.name: glance.description(e) for kind in ("aggregator", "teleport", "task") for e in registry().entries(kind)
    }
    assert said["upgrad"] == "Every gradient is projected onto the dual cone; the projections are averaged"
    assert said["relu-rescaling"].startswith("The positive rescaling symmetry")
    assert said["multimnist"] == "MultiMNIST: two overlapping digits, two 10-class tasks"
    unfinished = {name: text for name, text in said.items() if text.endswith((",", ":", "=")) or len(text) < 15}
    assert unfinished == {}
