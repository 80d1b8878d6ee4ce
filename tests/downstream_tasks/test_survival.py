"""Times to an event from the data folder to the result folder."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from sksurv.metrics import concordance_index_censored

from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.main_linearprobe import run
from downstream_tasks.report.checkpoints import compare_checkpoints
from downstream_tasks.report.results import Results
from src.datasets.folder.writer import FolderWriter
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import write_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A hundred people whose hazard is in how the first six of twelve ROIs correlate."""
    folder, rng = tmp_path_factory.mktemp("survival"), np.random.default_rng(0)
    with FolderWriter(
        folder / "data", roi_labels=[f"roi{r}" for r in range(12)], atlas="test", provenance={}
    ) as writer:
        for i in range(100):
            risk = rng.normal()
            series = rng.normal(size=(12, 40))
            series[:6] += np.exp(risk) * rng.normal(size=40)
            time, lost = rng.exponential(np.exp(-1.5 * risk)), rng.exponential(2)
            writer.add_run(
                series,
                participant_id=f"p{i:03d}",
                tr=2.0,
                family_id=f"f{i // 2:02d}",
                age=float(rng.integers(50, 80)),
                years=0.0 if i == 0 else round(min(time, lost), 2) + 0.01,
                died=bool(time <= lost),
            )
    return folder / "data", write_checkpoint(folder / "jepa-latest.pth.tar", folder / "data")


def config_of(files, out, **changes):
    sections = {
        "name": "death",
        "protocol": "cox",
        "output_root": str(out),
        "data": {
            "data_path": str(files[0]),
            "type": "survival",
            "target": "death",
            "target_unit": "years",
            "time": "years",
            "event": "died",
            "num_workers": 0,
        },
        "model": {"load_path": str(files[1])},
        "split": {"fractions": [0.4, 0.2, 0.4]},
        "evaluation": {"num_seed": 1, "n_exchanges": 50, "baselines": ["majority", "fc"]},
        "heads": {"folds": 3, "cox_alpha": [1000.0, 100.0, 10.0]},
    }
    for name, section in changes.items():
        either = sections.get(name, {}) | section if isinstance(section, dict) else section
        sections[name] = either
    return task_from_dict(sections, "test")


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    """Results of one evaluation, with confounds and both studies."""
    config = config_of(
        files,
        tmp_path_factory.mktemp("out"),
        data={"confounds": ["age"]},
        evaluation={"n_permutations": 9, "train_sizes": [0.5, 1.0], "train_draws": 1},
    )
    run(config, CPU)
    return config.output_dir


def test_rows_scores_and_predictions(folder):
    results = Results.read(folder / "results.json")
    rows = {row.name: row for row in results.rows}
    assert set(rows) >= {"Brain-JEPA", "FC", "FC + Brain-JEPA", "Confounds alone",
                         "FC, confounds removed", "Same risk for everyone"}  # fmt: skip
    assert all(row.head in ("cox", "none") for row in results.rows)
    assert (results.main_metric, results.metrics) == ("c_index", ("c_index",))
    assert rows["Same risk for everyone"].mean["c_index"] == 0.5
    low, high = rows["FC"].interval["c_index"]
    assert 0.5 < low < rows["FC"].mean["c_index"] < high
    predictions = pd.read_csv(folder / "predictions.tsv", sep="\t")
    assert "predicted" not in predictions
    assert "target" not in predictions
    for name in ("Brain-JEPA", "FC"):
        part = predictions[predictions["method"] == name]
        c = concordance_index_censored(part["event"] == 1, part["time"], part["risk"])[0]
        assert rows[name].mean["c_index"] == pytest.approx(c)


def test_the_data_are_described_and_compared(folder):
    text = (folder / "results.md").read_text()
    assert "Harrell's C" in text
    assert "had the event; median follow-up" in text
    assert "not seen after the scan: 1" in text or "the event was before the scan: 1" in text
    assert "outcome: years to died, or to the last visit" in text
    results = Results.read(folder / "results.json")
    model = results.comparison(results.model, results.fc)
    assert model.metric == "c_index"
    assert np.isfinite([*model.interval, model.p]).all()
    assert [test.n_permutations for test in results.permutations] == [9, 9]
    assert {point.name for point in results.learning_curve} == {"Brain-JEPA", "FC"}
    assert (folder / "figure.png").stat().st_size > 10_000
    (pair,) = compare_checkpoints({folder / "results.json": results, folder / "x": results})
    assert pair.found.difference == 0


def test_stored_heads_score_again(files, tmp_path):
    config = config_of(files, tmp_path)
    first = run(config, CPU)
    again = run(config, CPU, evaluate=True)
    assert again.model.mean == pytest.approx(first.model.mean)


def test_folds_test_everyone_once(files, tmp_path):
    config = config_of(files, tmp_path, split={"source": "cv", "folds": 3})
    results = run(config, CPU)
    table = pd.read_csv(config.output_dir / "predictions.tsv", sep="\t")
    tested = table[table["method"] == "FC"]["participant_id"]
    assert len(tested) == len(set(tested)) == 99
    assert results.fc.mean["c_index"] > 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "fine_tune"}, "protocol.* cox with data.type survival"),
        ({"protocol": "linear_probe"}, "protocol.* cox with data.type survival"),
        ({"protocol": "knn"}, "protocol.* cox with data.type survival"),
        ({"protocol": "logistic"}, "data.type"),
        ({"data": {"type": "regression"}}, "survival with protocol cox"),
        ({"data": {"event": ""}}, "data.event.*a column with data.horizon or data.type survival"),
        ({"data": {"horizon": 2.0}}, "data.horizon"),
        ({"data": {"classes": ["a", "b"]}}, "data.classes.*empty with data.type survival"),
        ({"evaluation": {"metric": "auroc"}}, "evaluation.metric.*c_index"),
        ({"heads": {"cox_alpha": []}}, "heads.cox_alpha"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(files, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        config_of(files, tmp_path, **changes)


def test_few_events_are_an_error_or_a_note(files, tmp_path):
    config = config_of(files, tmp_path)
    path = files[0] / "participants.tsv"
    before = path.read_text()
    table = pd.read_csv(path, sep="\t", dtype=str)
    died = table.index[(table["died"].str.lower() == "true") & (table["years"] != "0.0")]
    try:
        for kept, outcome in ((8, "note"), (1, "1 people had the event"), (0, "0 people")):
            table.loc[died[kept:], "died"] = "False"
            table.to_csv(path, sep="\t", index=False, na_rep="n/a")
            if outcome == "note":
                notes = run(config, CPU).notes
                assert any("test people had the event" in note for note in notes)
                assert any("training people had the event" in note for note in notes)
                continue
            with pytest.raises(UserError, match=outcome):
                run(dataclasses.replace(config, output_root=str(tmp_path / str(kept))), CPU)
    finally:
        path.write_text(before)
