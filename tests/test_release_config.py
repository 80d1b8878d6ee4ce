"""The release's own config: every key is understood, and means here what it means there."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn.modules.module import register_module_forward_pre_hook

from src import train
from src.config import Config, load_config
from src.datasets.folder import FolderWriter
from src.models.vision_transformer import VisionTransformer
from src.utils.distributed import Ranks
from src.utils.errors import UserError

ROOT = Path(__file__).parents[1]
# All keys of the published ViT-B, with their values and in their spelling.
RELEASE = """
data:
  batch_size: 16
  crop_size: [450, 160]
  num_workers: 8
  pin_mem: true
  gradient_csv_path: path/to/gradient_mapping_450.csv
logging:
  folder: logs/ukb_vitb_ep300
  write_tag: jepa
mask:
  allow_overlap: false
  patch_size: 16
  min_keep: 4
  enc_mask_scale: [0.84, 1]
  pred_mask_R_scale: [0.45, 0.6]
  pred_mask_T_roi_scale: [0.2, 0.6]
  pred_mask_R_roi_scale: [0.15, 0.3]
  pred_mask_T_scale: [0.0, 0.4]
meta:
  load_checkpoint: false
  model_name: vit_base
  pred_depth: 6
  pred_emb_dim: 384
  read_checkpoint: null
  use_bfloat16: true
  accumulation_steps: 8
  attn_mode: flash_attn
  add_w: mapping
  downsample: true
  mask_mode: 'roi_mask'
  use_standatdization: false
optimization:
  ema: [0.996, 1.0]
  epochs: 300
  final_lr: 1.0e-06
  final_weight_decay: 0.4
  ipe_scale: 1.0
  lr: 0.001
  start_lr: 0.00005
  warmup: 40
  weight_decay: 0.04
"""
N_PEOPLE, N_TRAIN, ROIS, FRAMES, CROP, STRIDE = 9, 7, 26, 200, 64, 3
# The release's config at a size that trains in a second.
SMALL = (
    *(f"data.crop_size=[{ROIS},{CROP}]", "data.batch_size=2", "data.num_workers=0"),
    *("logging.monitor_clips=2", "logging.monitor_every=10", "optimization.epochs=1"),
    *("optimization.warmup=1", "meta.embed_dim=24", "meta.depth=1", "meta.num_heads=2"),
    *("meta.pred_depth=1", "meta.pred_emb_dim=16", "meta.accumulation_steps=2"),
)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The file, as a user of the release has it."""
    path = tmp_path / "ukb_vitb_ep300.yaml"
    path.write_text(RELEASE)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Folder and its runs [people, R, T]: offsets of thousands, which differ by person."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("release") / "data"
    level = rng.uniform(2000, 12000, (1, ROIS, 1)) + 300 * rng.normal(size=(N_PEOPLE, ROIS, 1))
    series = (level + 40 * rng.normal(size=(N_PEOPLE, ROIS, FRAMES))).astype(np.float32)
    labels = [f"roi{r}" for r in range(ROIS)]
    with FolderWriter(path, roi_labels=labels, atlas="made up", provenance={}) as writer:
        for i, run in enumerate(series):
            split = "train" if i < N_TRAIN else "valid"
            writer.add_run(run, participant_id=f"p{i}", tr=0.735, split=split)
    np.savetxt(path / "gradients.csv", rng.normal(size=(ROIS, 5)), delimiter=",")
    return path, series


def released_robust(series: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """(x - median) / IQR, over training people, of each person's mean over time (method 7)."""
    means = series[:N_TRAIN].astype(np.float64).mean(2)
    q1, median, q3 = np.quantile(means, (0.25, 0.5, 0.75), axis=0)
    return (clips - median[:, None]) / (q3 - q1)[:, None]


def released_zscore(series: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """One mean and SD for all ROIs and frames of a clip, once it is sampled (method 7)."""
    mean, std = clips.mean((-2, -1), keepdims=True), clips.std((-2, -1), keepdims=True)
    return (clips - mean) / std


def every_clip(series: np.ndarray) -> np.ndarray:
    """Each clip that may be drawn from the runs: every third frame, from any start [N, R, T]."""
    span = STRIDE * (CROP - 1) + 1
    starts = range(series.shape[2] - span + 1)
    return np.stack([run[:, s : s + span : STRIDE] for run in series for s in starts]).astype(float)


def encoder_inputs(config: Config) -> list[torch.Tensor]:
    """Train, and return the clips [R, T] that the encoders were given."""
    seen: list[torch.Tensor] = []

    def note(module: torch.nn.Module, inputs: tuple) -> None:
        if isinstance(module, VisionTransformer):
            seen.extend(inputs[0][:, 0].clone())

    hook = register_module_forward_pre_hook(note)
    try:
        train.main(Ranks(torch.device("cpu")), config)
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("value", "normalize", "other"),
    [("false", released_robust, released_zscore), ("true", released_zscore, released_robust)],
)
def test_the_numbers_that_reach_the_encoder(
    value, normalize, other, release, runs, tmp_path, monkeypatch
):
    path, series = runs
    release.write_text(
        RELEASE.replace("use_standatdization: false", f"use_standatdization: {value}")
    )
    folder = [f"data.data_dir={path}", f"logging.folder={tmp_path / 'run'}"]
    gradients = f"data.gradient_csv_path={path / 'gradients.csv'}"
    inputs = encoder_inputs(load_config(release, [*SMALL, *folder, gradients]))
    assert len(inputs) >= 4
    expected, unexpected = (f(series, every_clip(series)) for f in (normalize, other))
    for clip in inputs:
        assert np.abs(expected - clip.numpy()).max((1, 2)).min() < 1e-3
        assert np.abs(unexpected - clip.numpy()).max((1, 2)).min() > 0.1


@pytest.mark.processes
def test_main_takes_the_file_as_it_is(release, runs, tmp_path):
    """With the default device; only sizes and paths are others."""
    path, _ = runs
    folder = [f"data.data_dir={path}", f"logging.folder={tmp_path / 'run'}"]
    gradients = f"data.gradient_csv_path={path / 'gradients.csv'}"
    command = [sys.executable, "main.py", "--fname", str(release), *SMALL, *folder, gradients]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("use_standatdization") == done.stderr.count("mask_mode") == 1
    assert "normalization: robust" in (tmp_path / "run" / "log.txt").read_text()
    assert load_config(tmp_path / "run" / "params-ijepa.yaml").data.normalization == "robust"


def test_every_key_keeps_its_value(release):
    config = load_config(release)
    assert config.meta.mask_mode == "spatiotemporal"
    assert (config.optimization.final_lr, config.optimization.ema) == (1e-6, (0.996, 1.0))
    assert config.clip_input.sampling == {"stride": 3}
    assert config.grid == (450, 10)
    assert config.encoder_size == {"embed_dim": 768, "depth": 12, "num_heads": 12}
    resolved = config.to_dict()
    renamed = {"meta.use_standatdization", "meta.mask_mode"}
    for section, keys in yaml.safe_load(RELEASE).items():
        for key, value in keys.items():
            if f"{section}.{key}" not in renamed:
                assert resolved[section][key] == value, key


def test_what_keys_of_the_release_mean_here_is_said_once(release, caplog):
    caplog.set_level(logging.INFO)
    assert load_config(release).data.normalization == "robust"
    assert caplog.messages == [
        f"{release}: meta.use_standatdization: false means data.normalization: robust",
        f"{release}: meta.mask_mode: roi_mask means spatiotemporal",
    ]
    load_config(release, ["meta.use_standatdization=true"])
    assert "use_standatdization: true means data.normalization: zscore_sample" in caplog.text


def test_normalization_where_given_decides_alone(release, caplog):
    for value in ("true", "false"):
        for method in ("robust", "zscore_roi", "none"):
            overrides = [f"meta.use_standatdization={value}", f"data.normalization={method}"]
            assert load_config(release, overrides).data.normalization == method
    assert "meta.use_standatdization has no effect beside data.normalization" in caplog.text


def test_the_published_setting_is_the_default(release):
    release.write_text(RELEASE.replace("  use_standatdization: false\n", ""))
    assert load_config(release).data.normalization == "robust"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("meta.use_standatdization=robust", "is 'robust'; allowed: false, true"),
        ("meta.use_standatdization=1", "is 1; allowed: false, true"),
        ("meta.mask_mode=block", "is 'block'; allowed: one of spatiotemporal, "),
        ("meta.mask_mode=null", "is None; allowed: one of spatiotemporal, "),
        ("data=3", "'data' must be a section of keys, but it is 3"),
    ],
)
def test_values_that_the_release_does_not_have_are_refused(release, override, message):
    with pytest.raises(UserError, match=message):
        load_config(release, [override])


def test_the_other_spelling_of_checkpointing(release):
    assert load_config(release, ["meta.checkpoint_activations=true"]).meta.gradient_checkpointing
