"""The release's downstream command lines and YAML, as its users have them."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import downstream_eval
from downstream_tasks.release import FLAT_KEYS
from downstream_tasks.task_files import load_task
from src.datasets.folder.writer import FolderWriter
from src.models.encoder_spec import EncoderSpec
from src.models.vision_transformer import SIZES
from src.utils.errors import UserError

ROOT = Path(__file__).parents[2]
ROIS, COMPONENTS = 20, 6
# The two published scripts; a tiny checkpoint has other numbers of ROIs and frames.
LINES = {
    "fine_tune": """
        python downstream_eval.py --downstream_task fine_tune --task classification
        --batch_size 16 --nb_classes 2 --num_seed 5 --load_epoch 300 --epochs 50 --blr 0.001
        --min_lr 0.000001 --smoothing 0.0 --config configs/downstream/fine_tune.yaml
        --output_root './output_dir' --model_name vit_base --data_make_fn hca_sex
        --load_path logs/your_ckpt_folder --use_normalization --crop_size 20,64 --patch_size 16
        --pred_depth 12 --pred_emb_dim 384 --attn_mode flash_attn --add_w mapping --downsample
    """,
    "linear_probe": """
        python downstream_eval.py --downstream_task linear_probe --task classification
        --batch_size 64 --nb_classes 2 --num_seed 5 --load_epoch 300 --epochs 50 --blr 0.001
        --min_lr 0.000001 --smoothing 0.0 --config configs/downstream/fine_tune.yaml
        --output_root './output_dir' --model_name vit_base --data_make_fn hca_sex
        --load_path logs/your_ckpt_folder --use_normalization --crop_size 20,64 --patch_size 16
        --pred_depth 12 --pred_emb_dim 384 --attn_mode flash_attn --add_w mapping --downsample
    """,
}
# The release's YAML: every key with its published value.
FLAT = {
    "global_pool": True, "resume": "", "accum_iter": 1, "lr": None, "drop_path": 0.1,
    "clip_grad": None, "weight_decay": 0.05, "layer_decay": 0.75, "warmup_epochs": 0,
    "finetune": "", "cls_token": False, "device": "cuda", "start_epoch": 0, "seed": 0,
    "num_workers": 8, "pin_mem": True, "no_pin_mem": False, "world_size": 1, "local_rank": -1,
}  # fmt: skip


def write_release_checkpoint(folder: Path) -> None:
    """What a pretraining of the release leaves: weights only, its config, and the gradients."""
    folder.mkdir(parents=True)
    gradients = np.random.default_rng(0).normal(size=(ROIS, COMPONENTS)).astype(np.float32)
    np.savetxt(folder / "gradients.csv", gradients, delimiter=",")
    config = {"data": {"gradient_csv_path": str(folder / "gradients.csv")}}
    (folder / "params-ijepa.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(0)
    spec = EncoderSpec(
        crop_size=(ROIS, 64), patch_size=16, embed_dim=24, depth=2, num_heads=3, add_w="mapping"
    )
    encoder = spec.build(torch.from_numpy(gradients)).state_dict()
    del encoder["gradient_pos_embed"]
    encoder = {f"module.{name}": value for name, value in encoder.items()}
    predictor = {  # six blocks deep, which the flags contradict; nothing else of it is read
        "module.predictor_embed.weight": torch.zeros(384, 24),
        **{f"module.predictor_blocks.{i}.norm1.weight": torch.ones(384) for i in range(6)},
    }
    torch.save(
        {"encoder": encoder, "target_encoder": encoder, "predictor": predictor, "opt": {}}
        | {"scaler": None, "epoch": 299, "loss": 0.1, "batch_size": 16, "world_size": 4, "lr": 0.1},
        folder / "jepa-ep300.pth.tar",
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder as users of the release have it: configs, data, logs."""
    home = tmp_path_factory.mktemp("home")
    (home / "configs").symlink_to(ROOT / "configs")
    write_release_checkpoint(home / "logs" / "your_ckpt_folder")
    rng = np.random.default_rng(0)
    labels = [f"roi{r}" for r in range(ROIS)]
    with FolderWriter(
        home / "data" / "hca", roi_labels=labels, atlas="test", provenance={}
    ) as writer:
        for i in range(40):
            series = rng.normal(size=(ROIS, 200))
            series[: 10 * (i % 2)] = series[0] + 0.5 * series[: 10 * (i % 2)]
            writer.add_run(series, participant_id=f"p{i}", tr=0.8, sex="MF"[i % 2], age=20.0 + i)
    return home


@pytest.fixture
def here(home, monkeypatch) -> Path:
    """The same folder entered; a vit_base is tiny in it."""
    monkeypatch.setitem(SIZES, "vit_base", {"embed_dim": 24, "depth": 2, "num_heads": 3})
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize("protocol", LINES)
def test_the_command_lines_of_the_release_run(here, protocol, capsys):
    arguments = shlex.split(LINES[protocol])[2:]
    # What the line costs here is not what it is about.
    downstream_eval.main([*arguments, "data.num_workers=0", "evaluation.controls=none"])
    folder = here / "output_dir" / "hca_sex" / protocol
    results = json.loads((folder / "results.json").read_text())
    model = results["rows"][0]
    head = {"fine_tune": "fine-tuned", "linear_probe": "published LARS probe"}[protocol]
    assert (model["name"], model["head"]) == ("Brain-JEPA", head)
    assert len(model["runs"]) == 5
    checkpoint = results["checkpoint"]
    assert checkpoint["kind"] == "release"
    assert (checkpoint["normalization"], checkpoint["sampling"]) == ("zscore_sample", {"stride": 3})
    assert results["settings"]["class weights"] == "none, as published"
    log = (folder / "log.txt").read_text()
    assert log.count("without effect for") == 1
    for key in ("device (", "pin_mem (", "no_pin_mem (", "world_size (", "local_rank ("):
        assert f"{key}" in log
    assert "pred_depth is 12, the checkpoint" in log
    written = yaml.safe_load((folder / "config.yaml").read_text())
    section = written[protocol]
    assert (section["epochs"], section["blr"], section["min_lr"]) == (50, 0.001, 1e-6)
    assert section["batch_size"] == {"fine_tune": 16, "linear_probe": 64}[protocol]
    decay = {"fine_tune": 0.05, "linear_probe": 0.0}[protocol]
    assert section["weight_decay"] == decay
    if protocol == "linear_probe":
        assert "weight_decay (of fine_tune)" in log
        assert model["runs"][0]["chosen"]["lr"] == 0.001 * 64 / 256
        assert "Brain-JEPA" in capsys.readouterr().out


# --- the YAML ------------------------------------------------------------------------------------


@pytest.fixture
def flat(tmp_path):
    """A user's own copy of the release's YAML, changed in some keys."""

    def write(**changes) -> Path:
        path = tmp_path / "fine_tune.yaml"
        path.write_text(yaml.safe_dump(FLAT | changes))
        return path

    return write


def test_the_file_of_this_project_is_that_of_the_release(flat):
    ours = ROOT / "configs" / "downstream" / "fine_tune.yaml"
    assert yaml.safe_load(ours.read_text()) == FLAT
    assert set(FLAT) == set(FLAT_KEYS)
    for line in ours.read_text().splitlines():
        assert "#" in line, line
    for protocol in ("fine_tune", "linear_probe", "logistic"):
        overrides = {"protocol": protocol}
        assert load_task("hca_sex", ours, overrides=overrides) == load_task(
            "hca_sex", flat(), overrides=overrides
        )


def test_every_key_of_the_yaml_has_its_meaning_or_is_named(flat, caplog):
    changed = {
        "accum_iter": 4, "lr": 0.25, "drop_path": 0.3, "clip_grad": 1.5, "weight_decay": 0.01,
        "layer_decay": 0.5, "warmup_epochs": 5, "seed": 7, "num_workers": 1, "device": "cpu",
        "pin_mem": False, "no_pin_mem": True, "world_size": 4, "local_rank": 0,
    }  # fmt: skip
    assert set(FLAT) - set(changed) == {
        "global_pool", "cls_token", "resume", "finetune", "start_epoch"
    }  # fmt: skip
    config = load_task("hca_sex", flat(**changed))
    tune = config.fine_tune
    assert (tune.accumulation_steps, tune.lr, tune.drop_path, tune.clip_grad) == (4, 0.25, 0.3, 1.5)
    assert (tune.weight_decay, tune.layer_decay, tune.warmup_epochs) == (0.01, 0.5, 5.0)
    assert (config.evaluation.seed, config.data.num_workers) == (7, 1)
    assert len(caplog.records) == 1
    for key in ("device", "pin_mem", "no_pin_mem", "world_size", "local_rank"):
        assert f"{key} (" in caplog.text


def test_what_the_yaml_means_to_the_other_protocols(flat, caplog):
    probe = {"protocol": "linear_probe"}
    changed = flat(lr=0.5, warmup_epochs=5, weight_decay=0.05)
    config = load_task("hca_sex", changed, overrides=probe)
    assert (config.linear_probe.lr, config.linear_probe.warmup_epochs) == (0.5, 5.0)
    assert config.linear_probe.weight_decay == 0.0  # method 8.14
    for key in ("weight_decay", "layer_decay", "drop_path", "clip_grad", "accum_iter"):
        assert f"{key} (of fine_tune)" in caplog.text
    attentive = load_task("hca_sex", changed, overrides={"protocol": "attentive_probe"})
    assert attentive.attentive_probe.lr == (0.5,)
    assert load_task("hca_sex", flat(), overrides=probe).linear_probe.lr is None
    with pytest.raises(UserError, match=r"accum_iter is 2; linear_probe takes whole batches"):
        load_task("hca_sex", flat(accum_iter=2), overrides=probe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cls_token": True}, "cls_token is True; allowed: False .* no class token"),
        ({"global_pool": False}, "global_pool is False; allowed: True"),
        ({"resume": "x.pth"}, "resume is 'x.pth'; allowed: '' .*--eval --load_path FILE"),
        ({"finetune": "x.pth"}, "finetune is 'x.pth'; .*--load_path"),
        ({"start_epoch": 3}, "start_epoch is 3; .*--resume"),
        ({"layer_decai": 0.5}, r"unknown key 'layer_decai'. Did you mean 'fine_tune.layer_decay'"),
        ({"drop_path": 1.5}, "fine_tune.drop_path is 1.5"),
        ({"weight_decay": "much"}, "fine_tune.weight_decay is 'much'"),
    ],
)
def test_values_of_the_yaml_that_cannot_be_honoured(flat, changes, message):
    with pytest.raises(UserError, match=message):
        load_task("hca_sex", flat(**changes))


def test_sections_of_a_file_win_over_its_flat_keys_and_overrides_over_both(flat):
    file = flat(fine_tune={"weight_decay": 0.2})
    assert load_task("hca_sex", file).fine_tune.weight_decay == 0.2
    config = load_task("hca_sex", file, overrides={"fine_tune.weight_decay": 0.3})
    assert config.fine_tune.weight_decay == 0.3


def test_the_file_alone_is_no_task():
    with pytest.raises(UserError, match=r"data_path is missing.*--data_make_fn hca_sex --config"):
        load_task(ROOT / "configs/downstream/fine_tune.yaml")
    with pytest.raises(UserError) as error:
        load_task("hca_sexx")
    assert "fine_tune" not in str(error.value)


def test_a_named_task_asked_for_in_another_folder_says_where_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"Run from the folder of downstream_eval\.py"):
        load_task("hca_sex")
