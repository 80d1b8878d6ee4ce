"""Flags of downstream_eval.py: the release's, ours, and what they may not say."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import downstream_eval
from downstream_eval import build_parser, configs_from_flags, parse_flags
from src.pretrained.load import load_pretrained
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import labelled_folder, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def parse(*arguments):
    (config,) = configs_from_flags(parse_flags([*map(str, arguments)]))
    return config


def test_the_command_line_of_the_release_keeps_working():
    config = parse(
        *("--config", "hca_sex", "--data_make_fn", "hca_sex", "--downstream_task", "fine_tune"),
        *("--task", "classification", "--nb_classes", 2, "--batch_size", 8, "--epochs", 5),
        *("--blr", 0.002, "--min_lr", 1e-5, "--smoothing", 0.1, "--num_seed", 3),
        *("--load_path", "x.pth.tar", "--load_epoch", 300, "--model_name", "vit_base"),
        *("--use_normalization", "--downsample", "--label_normalization", "true"),
        *("--gradient_checkpointing", "--add_w", "mapping", "--attn_mode", "flash_attn"),
        *("--crop_size", "450,160", "--patch_size", 16, "--pred_depth", 12),
        *("--pred_emb_dim", 384, "--output_root", "here", "--gradient_csv_path", "g.csv"),
    )
    tune = config.fine_tune
    assert (tune.batch_size, tune.epochs, tune.blr, tune.min_lr) == (8, 5, 0.002, 1e-5)
    assert (tune.smoothing, tune.gradient_checkpointing) == (0.1, True)
    model = config.model
    assert (model.load_path, model.load_epoch, model.model_name) == ("x.pth.tar", 300, "vit_base")
    assert (model.crop_size, model.patch_size) == ((450, 160), 16)
    assert (model.pred_depth, model.pred_emb_dim) == (12, 384)
    assert (model.add_w, model.attn_mode) == ("mapping", "flash_attn")
    data = config.data
    assert (data.nb_classes, data.downsample, data.normalization) == (2, True, "zscore_sample")
    assert data.gradient_csv_path == "g.csv"
    assert config.evaluation.num_seed == 3
    assert config.output_dir == Path("here/hca_sex/fine_tune")


def test_absent_switches_of_a_command_line_of_the_release_are_off(caplog):
    """With --data_make_fn as there; the task file's values with --config alone."""
    data = parse("--data_make_fn", "hca_age").data
    assert (data.downsample, data.normalization) == (False, "none")
    assert data.label_normalization is False
    for said in (
        "--use_normalization (data.normalization would be zscore_sample)",
        "--downsample (data.downsample would be true)",
        "--label_normalization (data.label_normalization would be true)",
    ):
        assert said in caplog.text
    caplog.clear()
    switches = ("--downsample", "--use_normalization", "--label_normalization")
    given = parse("--data_make_fn", "hca_age", *switches).data
    assert (given.downsample, given.normalization) == (True, "zscore_sample")
    assert given.label_normalization is True
    assert parse("--config", "hca_age").data == given
    assert not caplog.records
    # Overrides decide, and so does a stride that a file asks for.
    data = parse("--data_make_fn", "hca_age", "data.normalization=robust", "data.stride=2").data
    assert (data.normalization, data.stride, data.downsample) == ("robust", 2, None)


def test_a_stride_of_the_task_file_stays_where_downsample_is_absent(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {data_path: x, target: y, stride: 2}")
    data = parse("--data_make_fn", file).data
    assert (data.stride, data.downsample) == (2, None)


def test_a_switch_or_devices_leave_the_override_that_follows():
    for words in (
        ["--downsample", "data.target=x"],
        ["--devices", "cpu", "data.target=x"],
        ["--use_normalization", "true", "data.target=x", "--downsample"],
        ["--resample_splits", "data.target=x", "--downsample"],
    ):
        config = parse("--config", "hca_sex", "data.downsample=false", *words)
        assert config.data.target == "x"
    assert parse("--config", "hca_sex", "--downsample", "data.target=x").data.downsample is True


def test_empty_values_which_are_the_defaults_of_the_release_count_as_absent():
    names = ("load_epoch", "load_path", "output_root", "data_make_fn", "data_path")
    empty = [word for name in names for word in (f"--{name}", "")]
    assert parse("--config", "hca_age", *empty) == parse("--config", "hca_age")
    assert parse("--data_make_fn", "hca_age", "--config", "").name == "hca_age"


def test_linprobe_and_the_number_of_heads():
    config = parse("--config", "hca_sex", "--downstream_task", "linprobe", "--num_heads", 3)
    assert (config.protocol, config.model.num_heads) == ("linear_probe", 3)
    assert parse("--config", "hca_sex", "protocol=linprobe").protocol == "linear_probe"


def test_blr_alone_is_exactly_that_rate(tmp_path, caplog):
    task = ("--config", "hca_sex", "--downstream_task", "linear_probe", "--blr", 0.5)
    assert parse(*task).linear_probe.blr == 0.5
    with pytest.raises(UserError, match=r"--blr is one rate.*linear_probe.grid_blr=\[0.5\]"):
        parse(*task, "linear_probe.recipe=grid")
    assert not caplog.records
    # The release: an explicit lr replaces blr x batch / 256.
    file = tmp_path / "flat.yaml"
    file.write_text("lr: 0.25")
    config = parse("--data_make_fn", "hca_sex", "--config", file, *task[2:])
    assert config.linear_probe.lr == 0.25
    assert "--blr (lr is 0.25)" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config", "hca_sex", "--epohcs", "3"],
            r"flag --epohcs. Did you mean '--epochs'",
        ),
        (
            ["--config", "hca_sex", "--class_weights", "none"],
            "evaluation.class_weights=none",
        ),
        (["--config", "hca_sex", "--weight_decay=1"], "fine_tune.weight_decay=1 or linear_probe.w"),
        (["--config", "hca_sex", "embed"], "'embed' is a command, and comes first"),
        (
            ["--config", "hca_sex", "linear_probe.folds=3"],
            r"'split.folds' or 'heads.folds' or 'signal.folds'\?",
        ),
    ],
)
def test_hints_are_of_the_kind_that_was_meant(arguments, message):
    with pytest.raises(UserError, match=message):
        parse(*arguments)


def test_a_task_in_the_place_of_a_command():
    with pytest.raises(UserError, match=r"no command 'hca_sex'. The task .*: --config hca_sex"):
        downstream_eval.main(["hca_sex"])


def test_flags_that_are_not_given_leave_the_tasks_values():
    config = parse("--config", "hca_sex")
    assert config.data.downsample is True
    assert parse("--config", "hca_sex", "--downsample", "false").data.downsample is False
    assert config.evaluation.num_seed == 5


def test_flags_go_to_the_protocol_that_is_run():
    config = parse(
        *("--config", "hca_age", "--downstream_task", "linear_probe"),
        *("--batch_size", 32, "--blr", 0.5, "--epochs", 7),
    )
    assert (config.linear_probe.batch_size, config.linear_probe.epochs) == (32, 7)
    assert (config.linear_probe.recipe, config.linear_probe.blr) == ("published", 0.5)
    assert config.fine_tune.batch_size == 16


def test_flags_without_effect_for_the_protocol_are_named_and_ignored(caplog):
    task = ("--config", "hca_age", "--downstream_task")
    plain = parse(*task, "linear_probe")
    assert not caplog.records
    assert parse(*task, "linear_probe", "--gradient_checkpointing", "true") == plain
    assert "without effect for linear_probe: --gradient_checkpointing" in caplog.text
    assert parse(*task, "ridge", "--blr", 0.1, "--epochs", 3) == parse(*task, "ridge")
    assert "without effect for ridge: --epochs, --blr" in caplog.text


@pytest.mark.parametrize(
    ("flags", "what"),
    [(["--downstream_task", "ridge"], "ridge"), (["--eval"], "--eval")],
)
def test_what_has_no_state_to_resume(flags, what):
    with pytest.raises(UserError, match=f"--resume: {what} has no state"):
        downstream_eval.main(["--config", "hca_age", "--devices", "cpu", "--resume", *flags])


def test_overrides_and_config_files(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"data": {"data_path": "elsewhere"}}))
    config = parse("--data_make_fn", "hca_sex", "--config", file, "data.classes=[0, 1]")
    assert (config.name, config.data.data_path) == ("hca_sex", "elsewhere")
    assert config.data.classes == (0, 1)
    assert parse("--config", "hca_sex", "--data_path", "third").data.data_path == "third"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--config", "hca_sax"], r"Did you mean 'hca_sex'\?"),
        (["--config", "hca_sex", "data.targt=x"], r"Did you mean 'data.target'\?"),
        (["--config", "hca_sex", "nonsense"], "section.key=value"),
        (["--config", "hca_sex", "--task", "regression", "--downstream_task", "logistic"], "class"),
    ],
)
def test_what_flags_may_not_say(arguments, message):
    with pytest.raises(UserError, match=message):
        parse(*arguments)


@pytest.mark.parametrize("arguments", [["--crop_size", "big"], ["--downsample", "perhaps"]])
def test_values_of_the_wrong_form(arguments, capsys):
    with pytest.raises(SystemExit):
        parse("--config", "hca_sex", *arguments)
    assert arguments[1] in capsys.readouterr().err


@pytest.fixture
def files(tmp_path):
    data = labelled_folder(tmp_path / "data")
    return data, write_checkpoint(tmp_path / "run" / "jepa-latest.pth.tar", data)


def test_an_evaluation_from_the_command_line(files, tmp_path, capsys):
    data, checkpoint = files
    task = tmp_path / "small.yaml"
    task.write_text(yaml.safe_dump({"data": {"data_path": str(data), "target": "sex"}}))
    arguments = ["--config", task, "--load_path", checkpoint.parent, "--devices", "cpu"]
    arguments += ["--downstream_task", "logistic", "--num_seed", 1, "--output_root", tmp_path / "o"]
    downstream_eval.main([*map(str, arguments), "evaluation.n_exchanges=20", "data.num_workers=0"])
    printed = capsys.readouterr().out
    assert (tmp_path / "o/small/logistic/results.md").read_text() in printed
    assert "| FC " in printed


def test_embed_is_part_of_the_program(files, tmp_path):
    data, checkpoint = files
    out = tmp_path / "out.npz"
    arguments = ["embed", "--load_path", checkpoint, "--data_path", data, "--out", out]
    downstream_eval.main([*map(str, arguments), "--device", "cpu"])
    assert out.exists()


def test_export_is_part_of_the_program(files, tmp_path):
    out = tmp_path / "model"
    downstream_eval.main(["export", "--load_path", str(files[1]), "--out", str(out)])
    assert {"config.json", "model.safetensors"} <= {path.name for path in out.iterdir()}
    exported, trained = load_pretrained(out), load_pretrained(files[1])
    assert exported.kind == "export"
    x = torch.randn(1, 1, *trained.encoder_spec.crop_size)
    assert torch.equal(exported.encoder(x), trained.encoder(x))


def test_commands_are_in_the_help_and_have_their_own(capsys):
    text = build_parser().format_help()
    for name in downstream_eval.COMMANDS:
        assert f"\n  {name} " in text
        assert name in text[: text.index("\n\n")]  # the usage
        with pytest.raises(SystemExit) as ended:
            downstream_eval.main([name, "--help"])
        assert ended.value.code == 0
        assert "--out" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no command 'exprot'. Did you mean 'export'\?"):
        downstream_eval.main(["exprot", "--out", "x"])


def test_what_needs_one_process_runs_in_one_of_those_that_torchrun_starts(files, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(downstream_eval.main_linearprobe, "run", lambda *_: pytest.fail("second"))
    arguments = ["--config", "hca_sex", "--load_path", str(files[1]), "--devices", "cpu"]
    downstream_eval.main([*arguments, "--downstream_task", "knn"])
    for one_device in (["--downstream_task", "knn"], ["--eval"]):
        with pytest.raises(UserError, match="--devices names 2: name one"):
            downstream_eval.main([*arguments, "cpu", *one_device])


def test_the_program_helps_and_errs_in_one_line(files, tmp_path):
    def run(*arguments):
        command = [sys.executable, str(ROOT / "downstream_eval.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    helped = run("--help")
    assert helped.returncode == 0
    assert "--resample_splits" in helped.stdout
    wrong = run("--config", "hca_sex", "--load_path", files[1], "--data_path", tmp_path / "none")
    assert wrong.returncode == 2
    errors = [line for line in wrong.stderr.splitlines() if not line.startswith("20")]  # no log
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
