"""Export and import as safetensors + JSON: the same numbers, and everything the model knows."""

import argparse
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from downstream_tasks.models_vit import fine_tuned_model
from src.datasets.fmri import FMRIDataset
from src.datasets.folder import DataFolder
from src.pretrained import export
from src.pretrained.hub import BrainJEPAHub
from src.pretrained.load import load_pretrained
from src.utils.errors import UserError
from tests.conftest import COMPONENTS, FRAMES, ROIS
from tests.downstream_tasks.conftest import pretraining_run, reference


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    return pretraining_run(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def exported(run, tmp_path) -> Path:
    BrainJEPAHub.from_encoder(load_pretrained(run[1])).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_folder_has_the_hub_layout(exported):
    assert {p.name for p in exported.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    card = (exported / "README.md").read_text()
    assert "library_name: brain-jepa" in card
    assert "https://arxiv.org/abs/2409.19407" in card
    config = json.loads((exported / "config.json").read_text())
    assert config["encoder_spec"]["crop_size"] == [ROIS, FRAMES]
    assert config["normalization"] == "robust_frames"
    assert len(config["roi_labels"]) == ROIS
    with safe_open(exported / "model.safetensors", "pt") as file:
        gradients = file.get_slice("network.gradient_pos_embed")
        assert gradients.get_shape() == [1, ROIS, COMPONENTS]
        assert {"median", "iqr"} <= set(file.keys())


def test_the_code_of_the_card_runs_as_printed(exported, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    names = {"series": np.random.default_rng(0).normal(size=(ROIS, 4 * FRAMES))}
    exec(code.replace("FOLDER_OR_REPOSITORY", str(exported)), names)
    assert names["tokens"].shape == (1, ROIS * FRAMES // 16, 24)
    assert capsys.readouterr().out == ""


def test_files_have_ordinary_permissions(run, tmp_path):
    before = os.umask(0o027)
    try:
        BrainJEPAHub.from_encoder(load_pretrained(run[1])).save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    files = list((tmp_path / "model").iterdir())
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}
    assert len(files) == 3


def test_a_series_is_refused_as_a_run_would_be(run, exported):
    model, series = BrainJEPAHub.from_pretrained(exported), DataFolder(run[0]).series(0).copy()
    with pytest.raises(UserError, match=r"has 10 frames of 0\.8 s"):
        model.prepare(series[:, :10], tr=0.8)
    series[3, 5] = np.nan
    with pytest.raises(UserError, match="ROI 4"):
        model.prepare(series, tr=0.8)
    clip = model.prepare(series[:, :20], tr=0.8, short_runs="pad", bad_rois="zero")
    assert clip.shape == (1, ROIS, FRAMES)
    assert clip.isfinite().all()


def test_round_trip(run, exported):
    before, after = load_pretrained(run[1]), load_pretrained(exported)
    x = torch.randn(2, 1, ROIS, FRAMES)
    assert after.kind == "export"
    assert torch.equal(before.encoder(x), after.encoder(x))
    assert torch.equal(BrainJEPAHub.from_pretrained(exported)(x), before.encoder(x))
    assert torch.equal(before.gradients, after.gradients)
    assert all(
        torch.equal(before.clip_input.stats[name], after.clip_input.stats[name])
        for name in ("median", "iqr")
    )
    for name in ("encoder_spec", "roi_labels", "atlas", "input_profile"):
        assert getattr(before, name) == getattr(after, name), name
    for name in ("crop_size", "normalization", "sampling"):
        assert getattr(before.clip_input, name) == getattr(after.clip_input, name), name


def test_round_trip_of_a_fine_tuned_model(tmp_path):
    path, arrays, flags = reference("tiny_finetuned", tmp_path)
    BrainJEPAHub.from_encoder(load_pretrained(path, **flags)).save_pretrained(tmp_path / "model")
    x = torch.from_numpy(arrays["x"])
    for model in (
        BrainJEPAHub.from_pretrained(tmp_path / "model"),
        fine_tuned_model(load_pretrained(tmp_path / "model")),
    ):
        assert np.abs(model(x).detach().numpy() - arrays["logits"]).max() <= 2e-5


def test_moves_to_a_device_with_its_gradients(exported):
    model = BrainJEPAHub.from_pretrained(exported).to(torch.float64)
    assert model(torch.randn(1, 1, ROIS, FRAMES, dtype=torch.float64)).dtype == torch.float64


def test_a_folder_that_lacks_a_weight_is_refused(exported):
    weights = load_file(exported / "model.safetensors")
    del weights["network.norm.weight"]
    save_file(weights, exported / "model.safetensors")
    with pytest.raises(UserError, match=r"network\.norm\.weight"):
        load_pretrained(exported)
    (exported / "config.json").write_text("{")
    with pytest.raises(UserError, match="not a folder that BrainJEPAHub wrote"):
        load_pretrained(exported)


def test_flags_are_compared_with_an_export_too(exported):
    with pytest.raises(UserError, match="patch_size"):
        load_pretrained(exported, patch_size=8)


def test_export_program(run, tmp_path):
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    out = tmp_path / "out"
    arguments = parser.parse_args(["--load_path", str(run[1]), "--out", str(out)])
    assert export.run(arguments) == out
    assert load_pretrained(out).encoder_spec.embed_dim == 24
    with pytest.raises(UserError, match="not an empty folder"):
        export.run(arguments)


# --- preparing one series ----------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["robust_frames", "zscore_sample", "zscore_roi", "none"])
def test_prepares_as_the_data_set_does(run, exported, normalization):
    data = run[0]
    model = BrainJEPAHub.from_pretrained(exported)
    clip_input = load_pretrained(run[1]).clip_input.changed(normalization=normalization)
    dataset = FMRIDataset(data, "test", clip_input, clips="center")
    folder = DataFolder(data)
    row = int(dataset.rows[0])
    series, tr = torch.from_numpy(folder.series(row).copy()), float(folder.runs["tr"][row])
    clip = model.prepare(series, tr, normalization=normalization)
    torch.testing.assert_close(clip, dataset[0]["fmri"])
