"""Brainmarks' own model test of our plug-in and of its own wrapper, in environments of its own."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

from src.datasets.clip_input import ClipInput
from src.models.encoder_spec import EncoderSpec
from src.models.vision_transformer import vit_base
from src.pretrained.encoder import Pretrained, freeze
from src.pretrained.hub import BrainJEPAHub

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "downstream_tasks" / "brainmarks_plugin"
MODEL = "brain_jepa_checkpoint"
VERSION = "0.1.1"
# What Brainmarks' model test imports. Its other requirements (data sets in the cloud, experiment
# tracking, other models) are not needed, and its pin of setuptools would pull in an old PyTorch.
REQUIREMENTS = ("pycortex", "templateflow", "einops", "gdown")

pytestmark = pytest.mark.brainmarks


def environment(folder: Path) -> Path:
    """Make an environment with Brainmarks that sees the packages of this one; its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "--no-deps", f"brainmarks=={VERSION}"], check=True)
    subprocess.run([*install, *REQUIREMENTS], check=True)
    return python


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment with Brainmarks."""
    return environment(tmp_path_factory.mktemp("brainmarks") / "venv")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small model of the published parcellation's size, with all options of an encoder."""
    options = {"attention_bias": "gradient", "bias_components": 6, "bias_slopes": (0.2, 4.0)}
    options |= {"time_code": "few_patches", "roi_value_rank": 2}
    spec = EncoderSpec((450, 160), 16, 24, 1, 2, "mapping", **options)
    gradients = torch.randn(450, 30)
    stats = {"median": torch.zeros(450), "iqr": torch.ones(450)}
    pretrained = Pretrained(
        freeze(spec.build(gradients)),
        spec,
        "pretraining",
        Path("made by a test"),
        ClipInput((450, 160), "robust", stats, stride=3),
    )
    folder = tmp_path_factory.mktemp("model")
    BrainJEPAHub.from_encoder(pretrained).save_pretrained(folder)
    return folder


def run(python: Path, arguments: list[str], folder: Path, **variables: str) -> str:
    path = os.pathsep.join([str(ROOT), str(PLUGIN)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [str(python), *arguments], env=environment, cwd=folder, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def test_brainmarks_own_test(python, checkpoint, tmp_path):
    arguments = ["-m", "brainmarks.models.test_models", MODEL]
    output = run(python, arguments, tmp_path, BRAIN_JEPA_CHECKPOINT=str(checkpoint))
    assert re.search(r"= 2 passed, \d+ deselected in", output), output


def test_without_a_checkpoint_it_says_what_to_do(python, tmp_path):
    output = run(python, ["-m", "brainmarks.models.test_models", MODEL], tmp_path)
    assert "2 failed" in output
    assert "BRAIN_JEPA_CHECKPOINT" in output


def test_transform_and_embeddings(python, checkpoint, tmp_path):
    code = f"""
import torch
from brainmarks.models.registry import create_model
transform, model = create_model({MODEL!r}, ckpt_path={str(checkpoint)!r}, target_tr=2.0)
assert model.__space__ == "schaefer400_tians3"
time = torch.arange(400.0)[:, None]
bold = time.repeat(1, 450)
sample = {{"bold": (bold - bold.mean()) / bold.std(), "mean": bold.mean().expand(1, 450),
          "std": bold.std().expand(1, 450).clone(), "tr": torch.tensor(1.0)}}
sample["std"][0, 7] = 0.0
out = transform(sample)["bold"]
assert out.shape == (1, 450, 160), out.shape
# One sample every two frames, the centre of 400 frames, in the data's own units (robust 0, 1).
torch.testing.assert_close(out[0, 0], 40.0 + 2 * torch.arange(160.0), atol=1e-2, rtol=0)
assert not out[0, 7].any()
# Clamped there, the ROIs are alike but for the constant one, so that their mean is all they have.
clamped, _ = create_model({MODEL!r}, ckpt_path={str(checkpoint)!r}, target_tr=2.0, clip_sd=100.0)
assert clamped(sample)["bold"].max() == 100
removed, _ = create_model({MODEL!r}, ckpt_path={str(checkpoint)!r}, global_signal="remove")
assert removed(sample)["bold"].abs().max() < 1e-3
embeddings = model({{"bold": out[None]}})
assert embeddings.cls_embeds is None and embeddings.reg_embeds is None
assert embeddings.patch_embeds.shape == (1, 4500, 24)
assert torch.equal(embeddings.patch_embeds, model.encoder(out[None]))
print("all well")
"""
    assert "all well" in run(python, ["-c", code], tmp_path)


def test_plugin_is_a_namespace_package():
    assert not list(PLUGIN.rglob("__init__.py"))
    assert sys.version_info >= (3, 11), "brainmarks needs Python 3.11"


# ------------------------------------------------------------- Brainmarks' own wrapper, installed
@pytest.fixture(scope="module")
def client_python(tmp_path_factory) -> Path:
    """Brainmarks beside the installed package ``brain_jepa``, without this checkout."""
    python = environment(tmp_path_factory.mktemp("client") / "venv")
    copy = tmp_path_factory.mktemp("checkout") / "brain-jepa"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "tests").mkdir()
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    shutil.copy(ROOT / "tests" / "requirements.txt", copy / "tests")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", copy], check=True)
    return python


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home with the files that Brainmarks would download: gradients, and a ViT-B of the release.

    The weights are random. The file has the release's names, so it lacks the gradients.
    """
    home = tmp_path_factory.mktemp("home")
    cache = home / ".cache" / "brainmarks" / "brain-jepa"
    cache.mkdir(parents=True)
    gradients = torch.randn(450, 30)
    np.savetxt(cache / "gradient_mapping_450.csv", gradients.numpy(), delimiter=",")
    torch.manual_seed(0)
    weights = vit_base(gradient_pos_embed=gradients[None]).state_dict()
    del weights["gradient_pos_embed"]
    state = {"target_encoder": {f"module.{name}": value for name, value in weights.items()}}
    torch.save(state, cache / "jepa-ep300.pth.tar")
    return home


def test_brainmarks_own_wrapper_runs_on_the_installed_package(client_python, home, tmp_path):
    environment_variables = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    } | {"HOME": str(home)}
    done = subprocess.run(
        [client_python, "-m", "brainmarks.models.test_models", "brain_jepa_vitb_ep300"],
        cwd=tmp_path,
        env=environment_variables,
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert re.search(r"= 2 passed, \d+ deselected in", output), output
