"""A small simulation of coverage: intervals hold where a percentile bootstrap fails."""

import pytest

from scripts import coverage


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("10 people x 24 events, near the ceiling", ("balanced_accuracy", "auroc")),
        ("38 people, 9 positive, near the ceiling", ("balanced_accuracy", "auroc")),
    ],
)
def test_intervals_cover_where_the_percentile_bootstrap_does_not(name, metrics):
    setting = next(one for one in coverage.SETTINGS if one.name == name)._replace(metrics=metrics)
    found = coverage.simulate(setting, 150, n_population=50_000, with_p=False)
    assert len(found) == 4
    for row in found:  # binomial SD .018
        assert row.covered >= 0.93, row
        assert row.width < 3 * row.percentile_width, row
        if not row.paired:
            assert row.percentile_covered < 0.93, row


def test_the_table_has_a_line_per_metric_and_comparison(capsys, monkeypatch, tmp_path):
    setting = next(one for one in coverage.SETTINGS if "regression, good" in one.name)
    monkeypatch.setattr(coverage, "SETTINGS", (setting._replace(metrics=("mse", "pearson")),))
    coverage.main(["--n_tests", "20", "--out", str(tmp_path / "coverage.md")])
    text = capsys.readouterr().out
    assert (tmp_path / "coverage.md").read_text() == text
    lines = text.splitlines()
    assert len(lines) == 2 + 4
    assert "MSE, a - b" in lines[4]
