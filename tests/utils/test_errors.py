"""Messages that name commands of the package name it as it is installed."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.utils.errors import nearest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


@pytest.mark.parametrize("name", ["src", "brain_jepa"])
def test_a_command_in_a_message_names_the_package_as_it_is_imported(tmp_path, name):
    shutil.copytree(ROOT / "src", tmp_path / name)
    program = (
        f"from {name}.datasets.roi_features import load_gradients; load_gradients('no.csv', 3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert f"Make it with: python -m {name}.datasets.prepare.gradients" in done.stderr


def test_no_message_writes_the_package_out():
    named = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        documentation = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        }
        named += [
            f"{path.name}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and "python -m src" in node.value
            and id(node) not in documentation
        ]
    assert not named


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("sez", ["age", "sex"], " Did you mean 'sex'?"),
        ("05", ["01", "02"], ""),  # half the letters agree, and it is another run
        ("hca", ["ukb_age"], ""),
    ],
)
def test_only_what_may_be_a_misspelling_is_proposed(name, options, hint):
    assert nearest(name, options) == hint
