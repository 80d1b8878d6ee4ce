"""What may stand in a table: a new representation is one entry, and nothing else."""

import numpy as np
import pytest
import torch

from downstream_tasks import main_fingerprint, main_linearprobe
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.features.registry import REGISTRY, Representation
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import labelled_folder

CPU = torch.device("cpu")


def task(files, out, protocol, baselines, **evaluation):
    data, checkpoint = files
    return task_from_dict(
        {
            "name": "small",
            "protocol": protocol,
            "output_root": str(out),
            "data": {"data_path": str(data), "target": "sex", "num_workers": 0},
            "model": {"load_path": str(checkpoint)},
            "evaluation": {"num_seed": 1, "n_exchanges": 20, "baselines": baselines} | evaluation,
        },
        "test",
    )


@pytest.fixture
def added(monkeypatch):
    """A baseline of runs, a control of the encoder and a row without features."""
    seen = []

    def reversed_in_time(fmri, seeds):
        seen.append(len(seeds))
        return fmri.flip(-1)

    entries = (
        Representation(
            "first_frame", "First frame", "baseline", "run", lambda series: series[:, 0]
        ),
        Representation("reversed", "Time reversed", "control", "encoder", reversed_in_time),
        Representation(
            "coin", "Coin", "baseline", "nothing", lambda y, classes, n: np.full((n, 2), 0.5)
        ),
    )
    for entry in entries:
        monkeypatch.setitem(REGISTRY, entry.name, entry)
    return [entry.name for entry in entries], seen


def test_a_new_entry_has_its_row_with_nothing_else_changed(files, tmp_path, added):
    names, seen = added
    results = main_linearprobe.run(task(files, tmp_path, "logistic", names), CPU)
    rows = {(row.name, row.head): row.kind for row in results.rows}
    assert rows == {
        ("Brain-JEPA", "logistic"): "model",
        ("First frame", "logistic"): "baseline",
        ("Time reversed", "logistic"): "control",
        ("Coin", "none"): "baseline",
    }
    assert sum(seen) == 40
    table = (tmp_path / "small" / "logistic" / "results.md").read_text()
    assert "First frame" in table
    assert "Time reversed" in table


def test_a_new_entry_is_among_the_fingerprints(files, tmp_path, added):
    data = labelled_folder(tmp_path / "two_runs", people=6, runs=2)
    config = task((data, files[1]), tmp_path, "fingerprint", added[0])
    rows = main_fingerprint.run(config, CPU).rows
    assert {row.name: row.kind for row in rows} == {
        "Brain-JEPA": "model",
        "First frame": "baseline",
        "Time reversed": "control",
        "Chance": "baseline",
    }


def test_names_are_those_of_the_registry(files, tmp_path, added):
    task(files, tmp_path, "logistic", added[0])  # a new one is known
    with pytest.raises(UserError, match=r"evaluation\.baselines.*Did you mean 'first_frame'\?"):
        task(files, tmp_path, "logistic", ["fc", "first_fram"])
    with pytest.raises(UserError, match=r"evaluation\.baselines"):
        task(files, tmp_path, "logistic", ["model"])  # is in every table, not beside itself


def test_readouts_have_rows_beside_the_model_from_one_pass(files, tmp_path, passes):
    readouts = ["pooled", "roi", "connectivity"]
    config = task(files, tmp_path, "logistic", ["majority"], level="roi", readouts=readouts)
    rows = {row.name: row for row in main_linearprobe.run(config, CPU).rows}
    assert len(passes) == 40
    assert [name for name, row in rows.items() if row.kind == "readout"] == [
        "Brain-JEPA, mean of the tokens",
        "Brain-JEPA, mean of each ROI",
        "Brain-JEPA, feature connectivity",
    ]
    assert rows["Brain-JEPA"].mean == rows["Brain-JEPA, mean of each ROI"].mean
    # Sex is in the correlations of six ROIs, which an encoder keeps even untrained.
    assert rows["Brain-JEPA, feature connectivity"].mean["auroc"] > 0.8


def test_fc_and_the_model_together_have_a_row_beside_fc(files, tmp_path):
    config = task(
        files, tmp_path, "linear_probe", ["fc", "fc_run", "log_sd"], stack=["fc", "log_sd"]
    )
    results = main_linearprobe.run(config, CPU)
    rows = {(row.name, row.head): row for row in results.rows}
    assert [key for key, row in rows.items() if row.kind == "joint"] == [
        ("FC + Brain-JEPA", "logistic"),
        ("ROI log SD + Brain-JEPA", "logistic"),
    ]
    for name in ("FC", "ROI log SD"):  # alone, with the same head
        both, alone = rows[f"{name} + Brain-JEPA", "logistic"], rows[name, "logistic"]
        difference = results.comparison(both, alone).difference
        metric = results.main_metric
        assert difference == pytest.approx(both.mean[metric] - alone.mean[metric])
    assert 0 <= rows["FC + Brain-JEPA", "logistic"].runs[0].chosen["share"] < 1
    assert any("sees all frames" in note for note in rows["FC of the whole run", "logistic"].notes)
    assert not any("sees all frames" in note for note in rows["FC", "logistic"].notes)


def test_what_is_put_together_with_the_model_is_a_baseline_with_features(files, tmp_path):
    with pytest.raises(UserError, match=r"evaluation\.stack.*Did you mean 'fc_run'\?"):
        task(files, tmp_path, "logistic", ["fc"], stack=["fc_runs"])
    with pytest.raises(UserError, match=r"evaluation\.stack"):
        task(files, tmp_path, "logistic", ["fc"], stack=["majority"])


def test_levels_and_readouts_are_those_of_the_registry(files, tmp_path):
    with pytest.raises(UserError, match=r"evaluation\.level.*Did you mean 'connectivity'\?"):
        task(files, tmp_path, "logistic", ["fc"], level="conectivity")
    with pytest.raises(UserError, match=r"evaluation\.readouts.*Did you mean 'roi'\?"):
        task(files, tmp_path, "logistic", ["fc"], readouts=["rois"])
