"""The tables of mutants fit the code, and the program that makes them tells the outcomes apart."""

import ast
import subprocess
import sys

import pytest

from tests.mutants import ROOT, table

TIMEOUT = 600  # seconds

# One of each outcome, in the words of the last column.
EVERY_OUTCOME = """
import time

from tests.mutants import Mutant, run_mutants

FILE, OLD = "src/utils/schedulers.py", "min(1.0, (step - 1) / max(1, self.total - 1))"
TESTS = "tests/utils/test_schedulers.py"
MOMENTUM = f"{TESTS}::test_momentum_starts_at_the_first_and_ends_at_exactly_one"
DECAY = f"{TESTS}::test_weight_decay_rises_to_its_final_value"
ROWS = [
    (FILE, OLD, "0.5", MOMENTUM, "died"),
    (FILE, OLD, "0.5", f"{DECAY} {MOMENTUM}", "died"),
    (FILE, OLD, "0.5", DECAY, "survived"),
    (FILE, "no such text", "0.5", MOMENTUM, "error: the old text is 0 times"),
    (FILE, "step", "0.5", MOMENTUM, "error: the old text is"),
    (FILE, OLD, "0.5 0.5", MOMENTUM, "error: the mutated file is no Python"),
    (FILE, "import math\\n", "import no_such_module as math\\n", MOMENTUM, "error: pytest ended"),
    (FILE, OLD, "0.5", MOMENTUM + "_or_so", f"error: {MOMENTUM}_or_so fails without the mutation"),
]
for mutant, outcome in run_mutants([Mutant(*row) for row in ROWS], workers=2):
    detail = f": {outcome.detail}" if outcome.kind == "error" else ""
    print(("as expected" if (outcome.kind + detail).startswith(mutant.rule) else "WRONG"), outcome)
began = time.monotonic()  # the first trial run of the tests takes longer than a second
for mutant, outcome in run_mutants([Mutant(*row) for row in ROWS], deadline=began + 1):
    print("as expected" if outcome.kind == "left out" else "WRONG", outcome)
print("as expected" if time.monotonic() < began + 10 else "WRONG: after the deadline")
"""


def test_every_row_is_about_text_that_is_there_and_runs():
    rows = table()
    assert len(rows) >= 60
    assert len({(row.file, row.old, row.new) for row in rows}) == len(rows)
    assert all(row.rule for row in rows)
    wrong = []
    for row in rows:
        try:
            row.apply(ROOT)
        except ValueError as error:
            wrong.append(f"{row.name}: {error}")
    assert not wrong, "\n".join(wrong)


def test_every_row_names_tests_that_exist():
    known: dict[str, set[str]] = {}
    for row in table():
        for test in row.tests.split():
            file, _, name = test.partition("::")
            if file not in known:
                tree = ast.parse((ROOT / file).read_text())
                known[file] = {x.name for x in ast.walk(tree) if isinstance(x, ast.FunctionDef)}
            assert name.partition("[")[0] in known[file], row


@pytest.mark.processes
def test_the_outcomes_are_told_apart_and_the_checkout_is_untouched():
    before = (ROOT / "src/utils/schedulers.py").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", EVERY_OUTCOME],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8 + 8 + 1
    assert all(line.startswith("as expected") for line in lines), done.stdout
    assert (ROOT / "src/utils/schedulers.py").read_bytes() == before


@pytest.mark.mutants
def test_no_mutant_survives():
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "mutants.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
