"""The limit on the time of a run."""

from __future__ import annotations

import signal
import time

import pytest

from mtlbench.deadline import Overtime, within


@pytest.fixture
def handler():
    before = signal.getsignal(signal.SIGALRM)
    yield before
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, before)


def test_a_loop_is_ended_and_the_alarm_is_off(handler):
    def loop():
        with within(0.05, in_worker=False):
            while True:
                time.sleep(0.01)

    with pytest.raises(Overtime):
        loop()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == handler


def test_what_others_make_of_it_is_still_overtime(handler):
    """A step blames what is raised in a method on the method: the record said that the plugin had raised Overtime."""

    def blames():
        try:
            while True:
                time.sleep(0.01)
        except BaseException as error:
            raise ValueError("a plugin's fault") from error

    with pytest.raises(Overtime), within(0.05, in_worker=False):
        blames()
    with pytest.raises(ValueError, match="its own"), within(30.0, in_worker=False):
        raise ValueError("its own")


def test_an_alarm_that_rings_while_it_is_put_off_does_not_ring_on(monkeypatch, handler):
    """It rings again every second: left on, it would end whatever runs next."""
    off, rings = signal.setitimer, []

    def late(which, seconds, interval=0.0):
        if not seconds and not rings:
            rings.append(True)
            raise Overtime
        return off(which, seconds, interval)

    monkeypatch.setattr(signal, "setitimer", late)
    with pytest.raises(Overtime), within(30.0, in_worker=False):
        pass
    assert rings
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == handler
