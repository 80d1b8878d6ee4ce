"""Installed, ``src`` is the package ``brain_jepa``, and nothing else is installed with it."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

IMPORT_ALL = """
import importlib, pkgutil, sys
import brain_jepa
names = [module.name for module in pkgutil.walk_packages(brain_jepa.__path__, "brain_jepa.")]
for name in names:
    importlib.import_module(name)
assert len(names) > 30, names
assert not [name for name in sys.modules if name == "src" or name.startswith("src.")]
print("imported", len(names))
"""

ENCODE = """
import torch
from brain_jepa.models.vision_transformer import VisionTransformerPredictor, vit_tiny
encoder = vit_tiny(img_size=(6, 32), gradient_pos_embed=torch.randn(1, 6, 3), depth=1)
print(tuple(encoder(torch.randn(2, 1, 6, 32)).shape))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that pip builds of a copy of this checkout."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "tests").mkdir()
    shutil.copy(ROOT / "tests/requirements.txt", copy / "tests")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", out, copy], check=True, cwd=out)
    (built,) = out.glob("brain_jepa-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder that holds what the wheel installs."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_installed(code: str, installed: Path) -> str:
    """Output of ``code`` in a new interpreter that sees the installed package, not the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_brain_jepa_is_installed(installed):
    names = {path.name for path in installed.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"brain_jepa"}


def test_every_module_of_src_is_in_it_and_imports_under_its_name(installed):
    ours = {path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*.py")}
    theirs = {
        path.relative_to(installed / "brain_jepa")
        for path in (installed / "brain_jepa").rglob("*.py")
    }
    assert theirs == ours
    assert "imported" in run_installed(IMPORT_ALL, installed)


def test_the_networks_of_the_installed_package_run(installed):
    assert run_installed(ENCODE, installed).strip() == "(2, 12, 192)"


def test_commands_in_messages_name_the_installed_package(installed):
    code = (
        "from brain_jepa.datasets.roi_features import load_gradients\n"
        "from brain_jepa.utils.errors import UserError\n"
        "try:\n    load_gradients('nowhere.csv', 3)\n"
        "except UserError as error:\n    print(error)\n"
    )
    assert "python -m brain_jepa.datasets.prepare.gradients" in run_installed(code, installed)


def test_dependencies_are_those_of_requirements_txt(installed):
    (metadata,) = installed.glob("brain_jepa-*.dist-info/METADATA")
    headers = Parser().parsestr(metadata.read_text())
    assert headers["Name"] == "brain-jepa"
    found = [Requirement(text) for text in headers.get_all("Requires-Dist")]

    def listed(path: str) -> set[str]:
        lines = [line.partition("#")[0].strip() for line in (ROOT / path).read_text().splitlines()]
        return {str(Requirement(line)) for line in lines if line}

    assert {str(r) for r in found if r.marker is None} == listed("requirements.txt")
    extra = {str(r).partition(";")[0].strip() for r in found if r.marker is not None}
    assert extra == listed("tests/requirements.txt")
