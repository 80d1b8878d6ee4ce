"""Progress on a terminal and in a log file, each as real file descriptors."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT = 60  # seconds

PROGRAM = """
import time
from src.utils import progress

progress.EVERY_SECONDS = {every}
for i in progress.progress_bar(range(50), desc="reading", unit="run"):
    time.sleep(0.02)
with progress.progress_bar(total=20, initial=10, desc="training", unit="step") as bar:
    for step in range(10):
        bar.set_postfix(loss=step / 8, refresh=False)
        time.sleep(0.05)
        bar.update()
with progress.progress_bar(total=3, disable=True) as bar:
    time.sleep(0.3)
    bar.update(3)
"""


def through_a_pipe(every: float) -> str:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(every=every)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    ).stderr


def test_a_pipe_gets_whole_lines_now_and_then():
    errors = through_a_pipe(every=0.25)
    assert "\r" not in errors
    lines = errors.splitlines()
    reading = [line for line in lines if line.startswith("reading: ")]
    training = [line for line in lines if line.startswith("training: ")]
    assert lines == reading + training
    # A second and half a second: a line every 0.25 s, and the last one for the end.
    assert 2 <= len(reading) <= 5
    assert 1 <= len(training) <= 3
    assert re.fullmatch(r"reading: run \d+ of 50, 0:00:0\d elapsed, about 0:00:0\d left", lines[0])
    assert reading[-1].startswith("reading: run 50 of 50, ")
    assert re.fullmatch(r"training: step 20 of 20, 0:00:0\d elapsed, loss 1\.125", training[-1])


def test_a_pipe_gets_nothing_of_what_takes_less_than_half_a_minute():
    assert through_a_pipe(every=30) == ""


def test_a_terminal_gets_a_bar():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(every=0.25)], cwd=ROOT, stderr=theirs
    ) as program:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # Linux's way to say that the other side is closed
            pass
        assert program.wait(TIMEOUT) == 0
    os.close(ours)
    assert shown.count(b"\r") > 5
    assert b"100%|" in shown
    assert b"50/50" in shown
    assert b"elapsed" not in shown
