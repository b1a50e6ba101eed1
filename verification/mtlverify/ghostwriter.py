"""``mtl ghostwrite``: a pytest file for a plugin, one test per promise.

It is meant to be read, kept and changed: it says what is promised, what does not apply and why, and it fails when the
plugin begins to claim something that the file does not test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from mtlcore import create
from mtlcore.errors import ConfigurationError, MtlError, did_you_mean
from mtlcore.hosting import check_writable, plain, registry, to_stdout
from mtlverify.law import KINDS, Law
from mtlverify.runner import kind_of_name, laws

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_HEAD = '''\
"""What the {kind} {name!r} promises, one test per law.

First written by `mtl ghostwrite {typed}`; yours to change.
"""

import mtlcore
import pytest
from mtlverify import check

KIND, NAME = "{kind}", "{name}"
EXAMPLES = 100  # inputs per law; more at night


def verdict(law):
    """The result of one law. `result.counterexample` replays with mtlverify.replay."""
    [result] = check(NAME, [law], kind=KIND, max_examples=EXAMPLES)
    return result


def test_is_registered():
    assert NAME in mtlcore.available(KIND)


def test_every_claim_has_a_test():
    claims = mtlcore.create(KIND, NAME).claims
    tests = [name for name in globals() if name.startswith("test_law_")]
    tested = {{t.removeprefix("test_law_").replace("_", "-") for t in tests}}
    assert claims - set(NOT_APPLICABLE) <= tested
'''

_TEST = '''

def test_law_{function}():
    """{statement}"""
    result = verdict("{law}")
    assert result.status == "verified", f"{{result.detail}} {{result.counterexample}}"
    assert result.examples > 0
'''

_SILENT = """

# Laws that say nothing about this plugin, and why. A changed reason fails the test.
NOT_APPLICABLE = {{{entries}}}
"""

_SILENT_TEST = """

@pytest.mark.parametrize("law", NOT_APPLICABLE)
def test_not_applicable(law):
    result = verdict(law)
    assert result.status == "not-applicable"
    assert result.detail == NOT_APPLICABLE[law]
"""


def write_tests(name: str, kind: str | None = None) -> str:
    """The text of a test file for a registered plugin: formatted, and the same every time.

    Raises:
        UnknownPluginError, PluginError: the plugin cannot be found or made.
    """
    kind = kind or kind_of_name(name)
    plugin = create(kind, name)
    promised, silent = _sorted_laws(plugin, kind)
    parts = [_HEAD.format(typed=registry().to_type(kind, name), kind=kind, name=name)]
    entries = "".join(f"\n    {_quoted(law.id)}: {_reason(law.id, reason)}," for law, reason in silent)
    parts.append(_SILENT.format(entries=entries + "\n" if entries else ""))
    for law in promised:
        statement = law.statement if len(law.statement) <= 78 else _wrapped(law.statement)
        parts.append(_TEST.format(function=law.id.replace("-", "_"), law=law.id, statement=statement))
    if silent:
        parts.append(_SILENT_TEST)
    text = "".join(parts)
    return text if silent else text.replace("import pytest\n", "")


def _sorted_laws(plugin: Any, kind: str) -> tuple[list[Law], list[tuple[Law, str]]]:
    """Universal and claimed laws that apply, and those that do not, with the reason."""
    promised, silent = [], []
    for law in laws(kind):
        reason = law.applies(plugin)
        if reason is not None:
            silent.append((law, reason))
        elif law.universal or law.id in plugin.claims:
            promised.append(law)
    return promised, silent


def _quoted(text: str) -> str:
    """A string literal with double quotes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _reason(id: str, reason: str) -> str:
    """One literal, or several in parentheses, so that lines stay within 88 columns."""
    if len(f"    {_quoted(id)}: {_quoted(reason)},") <= 88:
        return _quoted(reason)
    lines = _broken(reason, 74)
    quoted = [_quoted(line + (" " if i + 1 < len(lines) else "")) for i, line in enumerate(lines)]
    return "(\n        " + "\n        ".join(quoted) + "\n    )"


def _wrapped(statement: str) -> str:
    """A docstring of several lines, or of one if it breaks into one."""
    lines = _broken(statement, 76)
    return "\n    ".join(lines) + ("\n    " if len(lines) > 1 else "")


def _broken(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines


@app.command()
def main(
    name: Annotated[str, typer.Argument(help="A registered plugin.")],
    kind: Annotated[Optional[str], typer.Option(help=f"{', '.join(KINDS)}.")] = None,  # noqa: UP045
    write: Annotated[Optional[Path], typer.Option(help="File to write; default: standard output.")] = None,  # noqa: UP045
) -> None:
    """Write a pytest file with one test for each law that the plugin promises."""
    if kind is not None and kind not in KINDS:
        hint = did_you_mean(kind, KINDS, "Kinds")
        raise typer.BadParameter(f"there is no kind {kind!r}. {hint}", param_hint="--kind")
    try:
        if write is not None and write.exists():
            raise ConfigurationError(f"{write} exists already; nothing was written.")
        text = write_tests(name, kind)
        check_writable(write)
    except MtlError as error:
        typer.secho(f"mtl ghostwrite: {plain(error)}", fg="red", err=True)
        raise typer.Exit(2) from error
    if write is None or to_stdout(write):
        typer.echo(text, nl=False)
        return
    write.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {write}")


if __name__ == "__main__":
    app()
