"""Whatever a plugin raises or says can be told, and told without harm; a Ctrl-C of the user stays one."""

from __future__ import annotations

import os
import signal

import pytest

from mtlcore.safety import blame, described, interrupted_by_user, one_line, plain, shown, type_name


class Hostile(Exception):
    def __init__(self, error):
        self.error = error

    def __str__(self):
        raise self.error

    __repr__ = __str__


class Text(str):
    def __getitem__(self, key):
        raise RuntimeError("no slices of me")

    split = replace = isascii = __getitem__


@pytest.mark.parametrize("inner", [ValueError(), SystemExit(0), KeyboardInterrupt(), GeneratorExit()])
def test_what_cannot_be_printed_is_named(inner):
    name = type(inner).__name__
    assert plain(Hostile(inner)) == f"<Hostile: its __str__ raised {name}>"
    assert shown(Hostile(inner)) == f"<Hostile: its __repr__ raised {name}>"
    assert described(Hostile(inner)) == f"Hostile: <Hostile: its __str__ raised {name}>"
    assert described(SystemExit(Hostile(inner))).startswith("SystemExit: it called sys.exit(<Hostile: its __repr__")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("\udcff", "\\udcff"),
        ("a\u202eb\u2028c", "a\\u202eb\\u2028c"),
        ("over\rwritten", "over\\x0dwritten"),
        ("two\r\nlines\tand\x00", "two\nlines and\\x00"),
        ("Gröbner 数学 ‖g‖²", "Gröbner 数学 ‖g‖²"),
        ("[bold]kept[/]", "[bold]kept[/]"),
        (Text("subclass\x1b"), "subclass\\x1b"),
        ("x" * 10**6, "x" * 2000 + "... (998000 more characters)"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, expected):
    assert plain(text) == expected
    assert type(plain(text)) is str
    assert plain(text).encode()
    assert "\n" not in one_line(text)


def test_a_class_without_a_name_of_its_own_has_one():
    class Meta(type):
        @property
        def __name__(cls):
            raise RuntimeError("nameless")

    assert type_name(Meta("Real", (Exception,), {})()) == "Real"
    assert described(type("\x1b]0;title\x07", (Exception,), {})("x")) == "\\x1b]0;title\\x07: x"


def code_raises(error):
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, ValueError, StopIteration])
def test_what_code_raises_is_blamed_on_the_code(kind):
    assert not interrupted_by_user(code_raises(kind()))
    assert blame(code_raises(kind())).startswith(kind.__name__)


def press():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10**6):
        pass


def press_and_pass_on():
    try:
        press()
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None


def blamed(call):
    try:
        call()
    except BaseException as error:
        blame(error)


@pytest.mark.parametrize("way", [press, press_and_pass_on])
@pytest.mark.parametrize("handler", ["default", "own"])
def test_a_ctrl_c_of_the_user_goes_on_its_way(way, handler):
    def own(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.default_int_handler if handler == "default" else own)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            blamed(way)
        assert interrupted_by_user(caught.value)
    finally:
        signal.signal(signal.SIGINT, before)
