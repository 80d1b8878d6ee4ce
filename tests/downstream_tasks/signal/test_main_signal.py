"""Imputation and forecast from the command line to the files."""

import numpy as np
import pandas as pd
import pytest
import torch

import downstream_eval
from downstream_tasks import main_signal
from downstream_tasks.report.results import Results
from src.utils.errors import UserError
from tests.downstream_tasks.signal.conftest import signal_task

CPU = torch.device("cpu")


def flags(data, checkpoint, output) -> list[str]:
    return [
        *("--config", "demo_forecast", "--load_path", str(checkpoint), "--data_path", str(data)),
        *("--devices", "cpu", f"output_root={output}", "signal.untrained_seeds=1"),
        *("signal.folds=2", "signal.mlp_epochs=1", "evaluation.clips=2"),
        f"data.gradient_csv_path={data / 'gradients.csv'}",
    ]


@pytest.mark.parametrize("protocol", ["imputation", "forecast"])
def test_the_command_line_writes_tables_that_agree(protocol, two_networks_files, tmp_path, capsys):
    downstream_eval.main([*flags(*two_networks_files, tmp_path), "--downstream_task", protocol])
    folder = tmp_path / "demo_forecast" / protocol
    assert f"Written to {folder}" in capsys.readouterr().out
    results = Results.read(folder / "results.json")
    people = pd.read_csv(folder / "people.csv")
    assert list(people) == ["protocol", "variant", "method", "participant_id", "r2", "r"]
    assert set(people["participant_id"]) == {"p04", "p09", "p14"}
    assert (people["variant"] == "as_trained").all()
    of_rows = {row.representation: row for row in results.rows}
    assert set(of_rows) == set(people["method"])
    assert results.rows[0].representation == "model.predictor"
    expected = {"imputation": {"ridge", "kernel"}, "forecast": {"var", "ar", "persistence"}}
    assert expected[protocol] < set(of_rows)
    for name, part in people.groupby("method"):
        assert part["r2"].mean() == pytest.approx(of_rows[name].mean["r2"], abs=1e-5)
    np.testing.assert_allclose(people[people["method"] == "mean"]["r2"], 0, atol=1e-6)
    compared = {(c.method, c.reference) for c in results.comparisons}
    model = of_rows["model.predictor"].label
    assert (model, of_rows["untrained.predictor"].label) in compared
    assert all(c.n_people == 3 and c.p_adjusted >= c.p for c in results.comparisons)
    rois = pd.read_csv(folder / "rois.csv")
    assert set(rois["network"]) == {"a", "b"}
    assert (folder / "networks.csv").is_file()
    assert (folder / "figure.png").is_file()
    assert "People who gain" in (folder / "results.md").read_text()
    assert any("without it each ROI's own past" in note for note in results.notes) == (
        protocol == "forecast"  # with the noise of the demo task
    )


def test_a_planted_law_is_found_by_the_baseline_that_knows_it(two_networks_files, tmp_path):
    results = main_signal.run(
        signal_task(*two_networks_files, tmp_path, protocol="imputation"), CPU
    )
    r2 = {row.representation: row.mean["r2"] for row in results.rows}
    assert r2["ridge"] > 0.6
    assert r2["kernel"] > 0.6
    assert r2["ridge"] > r2["untrained.predictor"] + 0.1


def test_the_note_says_what_autoregression_has_without_noise(two_networks_files, tmp_path):
    def run(noise: float, names: list[str]) -> Results:
        quick = {"noise": noise, "baselines": names, "untrained_seeds": 1, "folds": 2}
        return main_signal.run(signal_task(*two_networks_files, tmp_path, signal=quick), CPU)

    without = next(r.mean["r2"] for r in run(0.0, ["ar"]).rows if r.representation == "ar")
    noisy = run(0.5, ["ar"])
    assert any(f"with R2 {without:.3f}" in note for note in noisy.notes)
    assert next(r.mean["r2"] for r in noisy.rows if r.representation == "ar") < without
    assert not any("own past" in note for note in run(0.5, ["kernels"]).notes)


def test_eval_has_nothing_to_score_again(two_networks_files, tmp_path):
    with pytest.raises(UserError, match="forecast stores nothing"):
        main_signal.run(signal_task(*two_networks_files, tmp_path), CPU, evaluate=True)
