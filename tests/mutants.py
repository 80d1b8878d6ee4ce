"""Break the code on purpose, one line at a time, and see the tests notice.

    python tests/mutants.py                                 # every row of the tables
    python tests/mutants.py --only src/models src/masks     # rows of files whose path starts so
    python tests/mutants.py --fraction 0.1 --seed 3 --seconds 120   # what the gate does

A row says which text of which file is replaced by what, and which tests must fail then. Every
mutant is made in a copy of the checkout, never in the checkout. The exit code is 1 unless every
mutant died: a mutant whose tests pass has *survived*; one whose text is not in the file exactly
once, that does not run, or whose tests fail without it proves nothing and is an *error*. Those
that are not done when the seconds are over are *left out*, which is no failure.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # not in processes that the tests of a copy spawn: they import this too
    sys.path.insert(0, str(ROOT))  # a program finds modules in its own folder only
TIMEOUT = 300  # seconds that the tests of one mutant may take
FAILED = 1  # pytest's exit code: tests ran, and some failed
KINDS = ("died", "survived", "error", "left out")
# What every test imports, read once and then shared by all the processes that are forked.
HEAVY = ("pandas", "pytest", "scipy.stats", "sklearn.linear_model", "torch.utils.tensorboard")
HEAVY += ("timm.models.vision_transformer", "timm.optim", "torch.nn.parallel", "matplotlib.figure")
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_FORK = multiprocessing.get_context("fork")


class Mutant(NamedTuple):
    """One row of the tables.

    Attributes:
        file: path from the top of the checkout.
        old, new: text that the file holds exactly once, and what takes its place.
        tests: node ids of pytest, divided by spaces, of which one must fail.
        rule: what the line is there for, with the section of the method.
    """

    file: str
    old: str
    new: str
    tests: str
    rule: str

    @property
    def name(self) -> str:
        """The row in one line."""
        return f"{self.file}: {self.rule}"

    def apply(self, root: Path) -> str:
        """The text of the file with the mutation; ``ValueError`` if there is no such mutant."""
        text = (root / self.file).read_text()
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"the old text is {count} times in the file, not once: {self.old!r}")
        mutated = text.replace(self.old, self.new)
        try:
            compile(mutated, self.file, "exec")
        except SyntaxError as error:
            raise ValueError(f"the mutated file is no Python: {error}") from error
        return mutated


class Outcome(NamedTuple):
    """How it ended, and what pytest said in how many seconds."""

    kind: str  # one of KINDS
    detail: str
    seconds: float = 0.0


def table() -> list[Mutant]:
    """All rows."""
    from tests.mutants_of_downstream_tasks import ROWS as DOWNSTREAM_ROWS
    from tests.mutants_of_src import ROWS as SRC_ROWS

    return [Mutant(*row) for row in (*SRC_ROWS, *DOWNSTREAM_ROWS)]


# --- one copy of the checkout --------------------------------------------------------------------


def copy_checkout(target: Path) -> Path:
    """Copy what git knows or would add, without its history: nothing is shared with ``target``."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


class Copy:
    """A copy of the checkout in which pytest runs in forked processes."""

    def __init__(self, folder: Path) -> None:
        self.root = copy_checkout(folder / "checkout")
        self.scratch = folder / "scratch"

    def pytest(self, arguments: Sequence[str], timeout: float) -> tuple[int | None, str]:
        """Exit code (``None``: not finished in time) and output of pytest in this copy."""
        output = self.root / ".pytest-output"
        output.touch()
        process = _FORK.Process(target=_run_pytest, args=(self, arguments, output))
        process.start()
        try:
            process.join(max(0.0, timeout))
            code = process.exitcode
        finally:
            if process.is_alive():  # with the programs that its tests have started
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.join()
        shutil.rmtree(self.scratch, ignore_errors=True)
        return code, output.read_text(errors="replace")

    def failing(self, tests: Sequence[str], deadline: float) -> dict[str, str] | None:
        """Those of ``tests`` that fail, or do not exist, without any mutation, and why.

        ``None``: not known at ``deadline``.
        """
        left = deadline - time.monotonic()
        code, output = (
            self.pytest(tests, min(TIMEOUT * len(tests), left)) if left > 0 else (None, "")
        )
        if time.monotonic() >= deadline:
            return None
        if code == 0:
            return {}
        if len(tests) == 1:
            return {tests[0]: _tail(output)}
        alone = [self.failing([test], deadline) for test in tests]
        return None if None in alone else {k: why for found in alone for k, why in found.items()}

    def outcome(self, mutant: Mutant, deadline: float) -> Outcome:
        """Whether the tests of the mutant notice it before ``deadline``."""
        began = time.monotonic()
        if began >= deadline:
            return Outcome("left out", "not begun")
        path = self.root / mutant.file
        original = path.read_bytes()
        try:
            path.write_text(mutant.apply(self.root))
            seconds = min(TIMEOUT, deadline - began)
            code, output = self.pytest(["-x", *mutant.tests.split()], seconds)
        except ValueError as error:
            return Outcome("error", str(error))
        finally:
            path.write_bytes(original)
        took = time.monotonic() - began
        if code == 0:
            return Outcome("survived", "its tests pass", took)
        if code == FAILED:
            summary = [x for x in output.splitlines() if x.startswith(("FAILED ", "ERROR "))]
            return Outcome("died", summary[0] if summary else "", took)
        if code is None and took < TIMEOUT:
            return Outcome("left out", "its tests had not ended", took)
        why = f"after {TIMEOUT} s still running" if code is None else f"pytest ended with {code}"
        return Outcome("error", f"{why}: {_tail(output)}", took)


def _run_pytest(copy: Copy, arguments: Sequence[str], output: Path) -> None:
    """In a forked process: run pytest as if started at the top of the copy; end the process."""
    import pytest

    os.setsid()  # a group of its own, which can be killed as a whole
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with output.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.chdir(copy.root)
    ours = ("", str(ROOT), str(ROOT / "tests"))  # the copy's modules, not those of the checkout
    sys.path[:] = [str(copy.root), *(entry for entry in sys.path if entry not in ours)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    options = ["-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", f"--basetemp={copy.scratch}"]
    code = pytest.main([*options, *arguments])
    sys.stdout.flush()
    os._exit(int(code))


def _end_with(parent: int) -> None:
    """End this group of processes when ``parent`` has ended, as when the program is killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def _tail(output: str) -> str:
    return " / ".join(line for line in output.splitlines()[-6:] if line.strip())


# --- many ----------------------------------------------------------------------------------------

_copy: Copy  # of this worker process


def _begin(folder: str) -> None:
    global _copy
    _copy = Copy(Path(tempfile.mkdtemp(dir=folder)))


def _failing(tests: Sequence[str], deadline: float) -> dict[str, str] | None:
    return _copy.failing(tests, deadline)


def _outcome(mutant: Mutant, deadline: float) -> Outcome:
    return _copy.outcome(mutant, deadline)


def run_mutants(
    mutants: Sequence[Mutant], workers: int = 1, deadline: float = float("inf")
) -> Iterator[tuple[Mutant, Outcome]]:
    """Yield every mutant with its outcome.

    Tests run without any mutation before they run with one, file by file: one that fails then
    proves nothing. At ``deadline`` (of ``time.monotonic``) whatever still runs is ended.
    """
    for name in ONE_THREAD:
        os.environ[name] = "1"
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a stale .pyc would hide a mutation of equal size
    sys.dont_write_bytecode = True
    for name in HEAVY:
        importlib.import_module(name)
    by_file: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        by_file[mutant.tests.partition("::")[0]].append(mutant)
    files, ready = deque(by_file.values()), deque[Mutant]()
    running: dict[Future, Mutant | list[Mutant]] = {}
    with tempfile.TemporaryDirectory() as folder:
        pool = ProcessPoolExecutor(workers, _FORK, _begin, (folder,))
        try:
            while files or ready or running:
                while len(running) < workers and (ready or files):
                    if ready:
                        mutant = ready.popleft()
                        running[pool.submit(_outcome, mutant, deadline)] = mutant
                    else:
                        group = files.popleft()
                        tests = sorted({test for mutant in group for test in mutant.tests.split()})
                        running[pool.submit(_failing, tests, deadline)] = group
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    done, result = running.pop(future), future.result()
                    if isinstance(done, Mutant):
                        yield done, result
                        continue
                    for mutant in done:
                        if result is None:
                            yield mutant, Outcome("left out", "not begun")
                        elif broken := [x for x in mutant.tests.split() if x in result]:
                            why = f"{broken[0]} fails without the mutation: {result[broken[0]]}"
                            yield mutant, Outcome("error", why)
                        else:
                            ready.append(mutant)
        finally:
            pool.shutdown(cancel_futures=True)


def main() -> int:
    """Command line of this program."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the rows, at random")
    parser.add_argument("--seed", default="0", help="of that choice; any text")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after them")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="PATH", help="rows of files that start so"
    )
    parser.add_argument("--workers", type=int, default=2, help="copies of the checkout in use")
    parser.add_argument("--verbose", action="store_true", help="show what each mutant died of")
    arguments = parser.parse_args()
    rows = [row for row in table() if row.file.startswith(tuple(arguments.only))]
    if not rows:
        parser.error(f"no row of the tables is about a file {'*, '.join(arguments.only)}*")
    wanted = max(1, round(arguments.fraction * len(rows)))
    chosen = random.Random(arguments.seed).sample(rows, wanted) if wanted < len(rows) else rows

    counts = dict.fromkeys(KINDS, 0)
    deadline = started + arguments.seconds
    for mutant, outcome in run_mutants(chosen, arguments.workers, deadline):
        counts[outcome.kind] += 1
        if arguments.verbose or outcome.kind in ("survived", "error"):
            print(
                f"{outcome.kind} ({outcome.seconds:.0f} s): {mutant.name}\n    {outcome.detail}",
                flush=True,
            )
    said = ", ".join(
        f"{count or 'none'} {'in ' * (kind == 'error')}{kind}" for kind, count in counts.items()
    )
    print(f"{len(chosen)} mutants, drawn from {len(rows)} rows: {said}")
    return int(bool(counts["survived"] or counts["error"]) or not counts["died"])


if __name__ == "__main__":
    sys.exit(main())
