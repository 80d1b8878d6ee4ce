"""Whole evaluations with confounds and harmonised sites: rows side by side."""

import numpy as np
import pandas as pd
import pytest
import torch

from downstream_tasks import main_finetune, main_linearprobe
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import Rehearsal, labelled_folder, write_checkpoint
from tests.downstream_tasks.test_main_linearprobe import config_of

CPU = torch.device("cpu")
FEW = {"stack": [], "num_seed": 2, "n_exchanges": 20, "baselines": ["majority", "fc", "roi_stats"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("confounds")
    data = labelled_folder(folder / "data", runs=2)
    return data, write_checkpoint(folder / "jepa-latest.pth.tar", data)


def labels(results):
    return [row.label for row in results.rows]


def test_rows_without_confounds_stand_beside_the_others(files, tmp_path):
    config = config_of(
        files, tmp_path, "logistic", data={"confounds": ["age", "split"]},
        split={"source": "cv", "folds": 3}, evaluation=FEW,
    )  # fmt: skip
    results = main_linearprobe.run(config, CPU)
    plain = ["Brain-JEPA", "Majority class", "FC", "ROI mean and variance"]
    names = [row.name for row in results.rows]
    assert names[:4] == plain
    assert names[4:] == [
        "Confounds alone",
        *(f"{name}, confounds removed" for name in plain if name != "Majority class"),
    ]
    fc = next(row for row in results.rows if row.name == "FC, confounds removed")
    assert fc.mean["balanced_accuracy"] > 0.9  # sex is in the connectivity, age is not
    alone = next(row for row in results.rows if row.name == "Confounds alone")
    assert alone.mean["balanced_accuracy"] < 0.75
    assert "linear effects of age, split" in results.settings["confounds"]
    assert "linear effects of age, split" in (config.output_dir / "results.md").read_text()


def test_confounds_removed_from_the_target(files, tmp_path):
    config = config_of(
        files, tmp_path, "ridge", type="regression",
        data={"confounds": ["sex"], "confounds_from": "target"}, evaluation=FEW,
    )  # fmt: skip
    results = main_linearprobe.run(config, CPU)
    table = pd.read_csv(config.output_dir / "predictions.tsv", sep="\t")
    one = table[table["seed"] == 0].set_index("method")
    raw, residual = one.loc["FC", "target"], one.loc["FC, confounds removed", "target"]
    differences = np.unique(np.round(raw.to_numpy() - residual.to_numpy(), 4))
    assert len(differences) == 2  # one for each sex
    compared = {comparison.method for comparison in results.comparisons}
    assert not any("confounds removed" in label for label in compared)  # of another target
    of_residual = [row.name for row in results.rows if row.other_target]
    assert of_residual == [row.name for row in results.rows if "confounds removed" in row.name]
    text = (config.output_dir / "results.md").read_text()
    assert "confounds removed" not in text[: text.index("| Method")]


def test_harmonised_features_are_scored_again_from_the_stored_head(files, tmp_path):
    config = config_of(
        files, tmp_path, "logistic", data={"harmonize": "split", "harmonize_keep": ["age"]},
        split={"source": "cv", "folds": 3}, evaluation=FEW,
    )  # fmt: skip
    results = main_linearprobe.run(config, CPU)
    assert "ComBat learnt on the training people" in results.settings["harmonisation"]
    again = main_linearprobe.run(config, CPU, evaluate=True)
    assert again.rows[0].mean == pytest.approx(results.rows[0].mean)
    other = config_of(
        files, tmp_path, "logistic", split={"source": "cv", "folds": 3}, evaluation=FEW
    )
    with pytest.raises(UserError, match="harmonised was"):
        main_linearprobe.run(other, CPU, evaluate=True)


def test_the_protocols_on_tokens_correct_their_baselines(files, tmp_path):
    config = config_of(
        files, tmp_path, "attentive_probe", data={"confounds": ["age"]}, evaluation=FEW
    )
    corrected = [label for label in labels(main_linearprobe.run(config, CPU)) if "removed" in label]
    assert corrected == [
        "FC, confounds removed (logistic)", "ROI mean and variance, confounds removed (logistic)"
    ]  # fmt: skip


def test_fine_tuning_has_the_confounds_beside_it(tmp_path):
    rehearsal = Rehearsal(tmp_path / "rehearsal")
    config = rehearsal.task(
        tmp_path / "out", data={"confounds": ["age"]}, fine_tune={"epochs": 1},
        evaluation={"baselines": ["fc"]},
    )  # fmt: skip
    found = labels(main_finetune.run(config, [CPU]))
    both = "FC + Brain-JEPA, frozen encoder, confounds removed (logistic)"
    assert found[-3:] == ["Confounds alone (logistic)", "FC, confounds removed (logistic)", both]


@pytest.mark.parametrize(
    ("protocol", "sections", "message"),
    [
        ("logistic", {"data": {"confounds": ["C(sex)"]}}, r"data\.confounds .*than data\.target"),
        (
            "logistic",
            {"data": {"harmonize": "site", "harmonize_keep": ["C(sex)"]}},
            r"data\.harmonize_keep .*than data\.target",
        ),
        ("logistic", {"data": {"harmonize": "sex"}}, r"data\.harmonize .*than data\.target"),
        (
            "logistic",
            {"data": {"confounds": ["years"], "time": "years", "event": "ad", "horizon": 3.0}},
            r"data\.confounds .*and data\.time",
        ),
        ("logistic", {"data": {"confounds_from": "target"}}, "a class has no residual"),
        (
            "logistic",
            {"data": {"harmonize": "site"}, "split": {"source": "site", "site": "site"}},
            "the effect of a site that is left out cannot be learnt",
        ),
        ("attentive_probe", {"data": {"harmonize": "site"}}, "ComBat is of feature tables"),
        ("fingerprint", {"data": {"confounds": ["age"]}}, r"data\.confounds .*no training people"),
        ("logistic", {"data": {"harmonize_keep": ["age"]}}, r"data\.harmonize_keep .*empty"),
        ("logistic", {"split": {"source": "site"}}, r"split\.site .*the column that names"),
        ("logistic", {"split": {"source": "cv", "file": "x.tsv"}}, r"split\.file .*unset"),
        ("logistic", {"split": {"source": "cv", "resample": True}}, r"split\.resample .*false"),
        ("logistic", {"split": {"source": "cv", "folds": 1}}, r"split\.folds"),
    ],
)
def test_contradictions_are_found_in_the_config(files, tmp_path, protocol, sections, message):
    with pytest.raises(UserError, match=message):
        config_of(files, tmp_path, protocol, **sections)
