"""Task files: every one loads, sources win in order, and what is wrong is named."""

from pathlib import Path

import pytest
import yaml

from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.task_files import TASK_FOLDER, load_task, load_tasks, task_names, task_path
from src.utils.errors import UserError

FILES = [TASK_FOLDER / f"{name}.yaml" for name in task_names()]
MINIMAL = {"data": {"data_path": "data/x", "target": "sex"}}


def make(**sections):
    values = {name: dict(section) for name, section in MINIMAL.items()}
    for name, section in sections.items():
        if isinstance(section, dict):
            values[name] = values.get(name, {}) | section
        else:
            values[name] = section
    return task_from_dict(values, "task.yaml")


def test_every_task_has_its_file():
    names = {path.stem for path in FILES}
    assert names >= {
        "hca_sex", "hca_age", "hca_neuroticism", "hca_flanker", "adni_ncmci", "adni_amyloid",
        "macc_ncmci", "ukb_sex", "ukb_age", "oasis3_conversion", "camcan_depression",
        "demo_state", "demo_few_shot", "demo_fingerprint", "demo_short_fingerprint",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_task_files_load_and_every_line_is_commented(path: Path):
    configs = load_tasks(path.stem)
    for config in configs:
        assert config.name == path.stem
        target = [config.data.target] if len(configs) > 1 else []
        assert config.output_dir == Path("output_dirs", path.stem, config.protocol, *target)
        again = task_from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict())), "again")
        assert again == config
    for line in path.read_text().splitlines():
        assert "#" in line or line.rstrip().endswith(":"), line


def test_published_settings_are_the_defaults():
    config = make()
    tune = config.fine_tune
    assert (tune.epochs, tune.batch_size, tune.blr, tune.min_lr) == (50, 16, 1e-3, 1e-6)
    assert (tune.weight_decay, tune.layer_decay, tune.drop_path) == (0.05, 0.75, 0.1)
    probe = config.linear_probe
    assert (probe.epochs, probe.batch_size) == (50, 64)
    assert (probe.recipe, probe.blr, probe.weight_decay, probe.lr) == ("published", 0.01, 0.0, None)
    assert config.split.fractions == (0.6, 0.2, 0.2)
    assert list(config.seeds) == [0, 1, 2, 3, 4]


def test_later_sources_and_overrides_win(tmp_path):
    extra = tmp_path / "mine.yaml"
    extra.write_text("fine_tune: {epochs: 3}\ndata: {target: age}\n")
    config = load_task("hca_sex", extra, overrides={"data.target": "flanker", "output_root": "o"})
    assert (config.name, config.data.data_path) == ("hca_sex", "data/hca")
    assert (config.fine_tune.epochs, config.fine_tune.batch_size) == (3, 16)
    assert (config.data.target, config.output_root) == ("flanker", "o")


def test_a_name_that_is_no_task():
    with pytest.raises(UserError, match=r"no task 'hca_sexx'.*Did you mean 'hca_sex'\?"):
        load_task("hca_sexx")
    assert task_path("some/where.yaml") == Path("some/where.yaml")
    with pytest.raises(UserError, match="no config file"):
        load_task("some/where.yaml")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"tarjet": "x"}}, r"unknown key 'data.tarjet'. Did you mean 'data.target'\?"),
        ({"epoch": 3}, r"unknown key 'epoch'. Did you mean 'fine_tune.epochs' or 'li"),
        ({"data": {"epochs": 3}}, r"'data.epochs'. Did you mean .* or 'attentive_probe.epochs'\?"),
        ({"fine_tun": {}}, r"unknown section 'fine_tun'. Did you mean 'fine_tune'\?"),
        ({"data": {"type": "clasification"}}, "data.type is 'clasification'; allowed: classif"),
        ({"fine_tune": {"epochs": "many"}}, "fine_tune.epochs is 'many'; allowed: a whole number"),
        ({"fine_tune": {"epochs": 0}}, "fine_tune.epochs is 0; allowed: a whole number >= 1"),
        ({"fine_tune": {"layer_decay": 1.5}}, "fine_tune.layer_decay is 1.5"),
        ({"fine_tune": {"warmup_epochs": 60}}, "warmup_epochs is 60.0; allowed: 0 to epochs"),
        ({"data": {"target": ""}}, "data.target is missing"),
        ({"data": {"data_path": ""}}, "data.data_path is missing"),
        ({"data": {"classes": [False, True]}}, "in quotes"),
        ({"data": {"classes": ["a", "a"]}}, "each label once"),
        ({"data": {"nb_classes": 1}}, "nb_classes is 1; allowed: >= 2"),
        ({"data": {"horizon": 365.0, "time": "days"}}, "data.event is ''; allowed: a column"),
        ({"data": {"time": "days"}}, "data.time is 'days'; allowed: .* empty without"),
        (
            {"data": {"horizon": 1.0, "time": "t", "event": "e", "classes": ["a", "b", "c"]}},
            "data.horizon is 1.0; allowed: unset but for two data.classes",
        ),
        ({"data": {"target_tr": 2.0, "downsample": True}}, "data.target_tr is 2.0.*downsample"),
        ({"data": {"target_tr": 0.0}}, "data.target_tr is 0.0; allowed: a finite number > 0"),
        (
            {"split": {"fractions": [0.8, 0.2]}},
            r"split.fractions is \[0.8, 0.2\]; allowed: \[a finite number > 0, ",
        ),
        ({"evaluation": {"metric": "acuracy"}}, r"allowed: accuracy, .* Did you mean 'accuracy'\?"),
        ({"evaluation": {"metric": "mse"}}, "evaluation.metric is 'mse'"),
        ({"evaluation": {"metric": "ece"}}, "evaluation.metric is 'ece'"),
        ({"evaluation": {"train_sizes": [1.5]}}, "allowed: a list of .*numbers of people"),
        ({"evaluation": {"train_sizes": [0]}}, "allowed: a list of .*numbers of people"),
        (
            {"evaluation": {"n_permutations": 100}, "protocol": "fine_tune"},
            "allowed: 0 with fine_tune, which would train 100 x 5 networks",
        ),
        (
            {"evaluation": {"train_sizes": [5, 0.5]}, "protocol": "fine_tune"},
            "allowed: empty with fine_tune, which would train 10 x 5 networks",
        ),
        (
            {"evaluation": {"n_permutations": 100}, "protocol": "fingerprint"},
            "allowed: 0 with fingerprint, which fits nothing",
        ),
        ({"evaluation": {"baselines": ["majorty"]}}, r"Did you mean 'majority'\?"),
        ({"evaluation": {"baselines": ["raw_patch"]}}, "raw_patch, patch_mean, .* of events only"),
        (
            {"linear_probe": {"grid_blr": []}},
            r"linear_probe.grid_blr is \[\]; allowed: a list of .* not empty",
        ),
        (
            {"linear_probe": {"grid_weight_decay": [-1.0]}},
            r"weight_decay is \[-1.0\]; .* number >= 0",
        ),
        ({"heads": {"C": [1.0, 0.0]}}, r"heads.C is \[1.0, 0.0\]; .* number > 0"),
        ({"heads": {"folds": 1}}, "heads.folds is 1; allowed: a whole number >= 2"),
        ({"heads": {"n_neighbors": []}}, "heads.n_neighbors is .*not empty"),
        ({"fine_tune": {"smoothing": 1.0}}, "smoothing is 1.0; .* from 0 to below 1"),
        ({"evaluation": {"n_exchanges": 0}}, "evaluation.n_exchanges is 0; .* >= 1"),
        ({"protocol": "ridge"}, "data.type is 'classification'; allowed: regression with protocol"),
        ({"protocol": "logistic", "data": {"type": "regression"}}, "classification with protocol"),
        ({"protocol": "finetune"}, r"Did you mean 'fine_tune'\?"),
    ],
)
def test_values_that_no_evaluation_can_have(sections, message):
    with pytest.raises(UserError, match=message) as error:
        make(**sections)
    assert str(error.value).startswith("task.yaml: ")


def test_class_weights_are_one_setting_and_off_as_published():
    assert make().evaluation.class_weights == "none"
    for section in ("fine_tune", "linear_probe", "attentive_probe", "heads"):
        with pytest.raises(UserError, match=r"Did you mean 'evaluation\.class_weights'"):
            make(**{section: {"class_weights": True}})


def test_the_published_probe_reads_pooled_tokens():
    level = {"evaluation": {"level": "roi"}}
    with pytest.raises(UserError, match=r"level is 'roi'; allowed: pooled.*recipe=grid"):
        make(protocol="linear_probe", **level)
    make(protocol="linear_probe", linear_probe={"recipe": "grid"}, **level)
    make(protocol="logistic", **level)


def test_fingerprinting_needs_no_target():
    config = task_from_dict({"protocol": "fingerprint", "data": {"data_path": "x"}}, "t")
    assert config.data.target == ""


def test_one_output_is_what_a_regression_has():
    assert make(data={"type": "regression", "nb_classes": 1}).data.nb_classes == 1


def test_default_metric_follows_the_task():
    assert make().metric == "balanced_accuracy"
    assert make(data={"type": "regression"}).metric == "mse"
    assert make(evaluation={"metric": "auroc"}).metric == "auroc"
