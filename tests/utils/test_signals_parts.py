"""Stop requests and their handlers, by real signals to this process."""

import os
import signal

import pytest

from src.utils.signals import Interrupted, StopRequest, name_of, stop_requests


def send(*numbers: int) -> None:
    """Send signals to this process; Python has handled each before the next line runs."""
    for number in numbers:
        os.kill(os.getpid(), number)


def test_the_first_signal_counts():
    with stop_requests() as stop:
        assert not stop.is_set()
        assert (stop.exit_code, str(stop)) == (0, "no signal")
        send(signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
        assert stop.is_set()
        assert (stop.exit_code, str(stop)) == (138, "SIGUSR1")
    assert [name_of(code) for code in (130, 143)] == ["SIGINT", "SIGTERM"]


def test_an_inner_block_continues_the_request():
    """A signal that a worker gets before its training begins stops it after the first step."""
    with stop_requests():
        send(signal.SIGTERM)
        with stop_requests() as stop:
            assert stop.exit_code == 143
    with stop_requests() as later:
        assert later.exit_code == 0


def test_a_second_ctrl_c_interrupts():
    with pytest.raises(Interrupted) as interrupted, stop_requests():
        send(signal.SIGINT, signal.SIGINT)
    assert (interrupted.value.exit_code, str(interrupted.value)) == (130, "SIGINT")


def test_a_second_ctrl_c_under_torchrun_is_its_own(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with stop_requests() as stop:
        send(signal.SIGINT, signal.SIGINT)
    assert stop.exit_code == 130


def test_handlers_are_given_back():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with stop_requests():
        assert all(signal.getsignal(n) is not b for n, b in zip(numbers, before, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before


def test_requests_say_no_signal_until_one_has_come():
    stop = StopRequest()
    stop.set(signal.SIGTERM)
    assert (stop.is_set(), str(stop)) == (True, "SIGTERM")
