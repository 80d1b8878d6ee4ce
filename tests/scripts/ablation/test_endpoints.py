"""Scores of people, endpoints over them, and the report: against numbers worked out by hand."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from scripts.ablation.endpoints import compare_endpoints
from scripts.ablation.experiment import plan_from_dict
from scripts.ablation.figure import draw
from scripts.ablation.report import markdown
from scripts.ablation.table import person_scores, role_of
from src.utils.errors import UserError

PEOPLE = [f"p{i}" for i in range(8)]
ALONE = {("d", person): person for person in PEOPLE}
ROLES = {"model": "model", "untrained 0": "untrained", "untrained 1": "untrained",
         "ridge": "raw", "var": "raw"}  # fmt: skip


def plan(*endpoints, arms=("a", "b"), **values):
    needed = {"name": "x", "pretrain": "p.yaml", "data": "d", "evaluate": "t", "seeds": [0, 1]}
    arms = {name: {"steps": 10 * (i + 1)} for i, name in enumerate(arms)}
    return plan_from_dict(needed | {"arms": arms, "endpoints": list(endpoints)} | values, "file")


def endpoint(against, **more):
    return {"task": "t", "metric": "r2", "against": against} | more


@pytest.fixture
def table() -> pd.DataFrame:
    """Scores of five rows in two arms and seeds."""
    rng = np.random.default_rng(0)
    lines = [
        {"experiment": "x", "arm": arm, "seed": seed, "fold": 0, "data": "d", "task": "t",
         "variant": "", "method": method, "role": role, "participant_id": person, "metric": "r2",
         "value": level + rng.normal(0, 0.1)}
        for arm in "ab" for seed in (0, 1) for person in PEOPLE
        for level, (method, role) in enumerate(ROLES.items())
    ]  # fmt: skip
    return pd.DataFrame(lines)


def values(table, arm, *methods):
    rows = table[(table["arm"] == arm) & table["method"].isin(methods)]
    return rows.groupby("participant_id")["value"].mean().loc[PEOPLE].to_numpy()


def test_seeds_and_untrained_copies_are_averaged_within_a_person(table):
    found = compare_endpoints(plan(endpoint("untrained", arms=["a"])), table, ALONE)
    expected = values(table, "a", "model") - values(table, "a", "untrained 0", "untrained 1")
    (one,) = found
    assert one.found.mean == pytest.approx(expected.mean())
    assert one.found.t_p == pytest.approx(stats.ttest_1samp(expected, 0).pvalue)
    assert (one.n_runs, one.n_runs_planned) == (2, 2)


def test_the_untrained_row_of_the_same_name_is_the_reference(table):
    names = {"model": "var+model", "untrained 0": "var+untrained"}
    renamed = table.assign(method=table["method"].replace(names))
    e = endpoint("untrained", arms=["a"], method="var+model")
    (one,) = compare_endpoints(plan(e), renamed, ALONE)
    assert one.reference == "var+untrained"
    difference = values(table, "a", "model") - values(table, "a", "untrained 0")
    assert one.found.mean == pytest.approx(difference.mean())


def test_the_best_raw_row_is_the_best_of_all_and_named(table):
    (one,) = compare_endpoints(plan(endpoint("best_raw", arms=["b"])), table, ALONE)
    assert one.reference == "var"
    difference = values(table, "b", "model") - values(table, "b", "var")
    assert one.found.mean == pytest.approx(difference.mean())


def test_features_stacked_on_the_best_raw_row_are_compared_with_that_row(table):
    stacked = [table[table["role"] == "model"].assign(method=f"{name}+model", role="other")
               for name in ("ridge", "var")]  # fmt: skip
    both = pd.concat([table, stacked[0], stacked[1].assign(value=lambda t: t["value"] + 7)])
    e = endpoint("best_raw", arms=["b"], method="best_raw+model")
    (one,) = compare_endpoints(plan(e), both, ALONE)
    assert (one.method, one.reference) == ("var+model", "var")
    difference = values(both, "b", "var+model") - values(both, "b", "var")
    assert one.found.mean == pytest.approx(difference.mean())
    with pytest.raises(UserError, match=r"t has no row 'var\+model'"):
        compare_endpoints(plan(e), table, ALONE)


def test_an_arm_is_compared_with_the_same_row_of_another_and_not_with_itself(table):
    (one,) = compare_endpoints(plan(endpoint("arm a", method="ridge")), table, ALONE)
    assert (one.arm, one.reference) == ("b", "a")
    difference = values(table, "b", "ridge") - values(table, "a", "ridge")
    assert one.found.mean == pytest.approx(difference.mean())


def test_errors_count_the_other_way_round(table):
    errors = table.assign(metric="squared_error")
    e = endpoint("ridge", arms=["a"], metric="squared_error")
    (one,) = compare_endpoints(plan(e), errors, ALONE)
    difference = values(table, "a", "ridge") - values(table, "a", "model")
    assert one.found.mean == pytest.approx(difference.mean())
    (best,) = compare_endpoints(plan(e | {"against": "best_raw"}), errors, ALONE)
    assert best.reference == "ridge"


def test_a_family_counts_once(table):
    families = {("d", person): f"f{i // 2}" for i, person in enumerate(PEOPLE)}
    (one,) = compare_endpoints(plan(endpoint("ridge", arms=["a"])), table, families)
    difference = values(table, "a", "model") - values(table, "a", "ridge")
    assert one.found.n == 8
    # Families of two: the mean over people is that over the families' means.
    expected = stats.ttest_1samp(difference.reshape(4, 2).mean(axis=1), 0)
    assert one.found.t_p == pytest.approx(expected.pvalue)
    assert one.found.low == pytest.approx(expected.confidence_interval().low)
    assert one.found.flip_p == 2 / 2**4


def test_p_is_corrected_for_all_comparisons_of_the_experiment(table):
    found = compare_endpoints(plan(endpoint("untrained"), endpoint("best_raw")), table, ALONE)
    assert len(found) == 4
    assert [c.found.flip_p for c in found] == [2 / 2**8] * 4
    assert [c.holm for c in found] == [pytest.approx(4 * 2 / 2**8)] * 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (endpoint("vra"), "t has no row 'vra', but model, ridge"),
        (endpoint("untrained", metric="r"), "metric is 'r', but t has r2"),
        (endpoint("untrained", variant="half"), "variant is 'half', but t has "),
        (endpoint("untrained", method="modle"), "Did you mean 'model'?"),
    ],
)
def test_an_endpoint_of_what_is_not_there_is_refused(table, wrong, message):
    with pytest.raises(UserError, match=re.escape(message)):
        compare_endpoints(plan(wrong), table, ALONE)


def test_report_and_figure_say_who_gains(table, tmp_path):
    p = plan(endpoint("untrained"), question="Why?")
    found = compare_endpoints(p, table, ALONE)
    text = markdown(p, table, found, [], ["one note"])
    assert "**question**: Why?" in text
    assert "| t model: r2 against untrained | a | " in text
    assert "| 0 of 8 |" in text
    line = next(line for line in text.splitlines() if line.startswith("| ridge |"))
    means = [float(cell) for cell in line.split("|")[2:4]]
    assert means == pytest.approx([values(table, arm, "ridge").mean() for arm in "ab"], abs=6e-4)
    paths = draw(tmp_path, p, table, found)  # with curves: the arms differ in their steps
    assert all(path.stat().st_size > 10_000 for path in paths)


# --- scores of people -----------------------------------------------------------------------------


def write_predictions(folder, rows):
    pd.DataFrame(rows).to_csv(folder / "predictions.tsv", sep="\t", index=False, na_rep="n/a")


def score(scores, person, metric):
    rows = scores[(scores["participant_id"] == person) & (scores["metric"] == metric)]
    return rows["value"].item()


def test_events_of_a_person_are_scored_together(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for person in ("01", "02"):
        for event in range(9):
            p = rng.uniform()
            rows.append(
                {"method": "M", "head": "h", "seed": 0, "fold": None, "participant_id": person,
                 "target": "heat" if event % 3 else "rating", "p_rating": 1 - p, "p_heat": p,
                 "predicted": "heat" if p > 0.5 else "rating"}
            )  # fmt: skip
    write_predictions(tmp_path, rows)
    row = {"name": "M", "head": "h", "kind": "model", "representation": "model"}
    (tmp_path / "results.json").write_text(json.dumps({"rows": [row]}))
    scores = person_scores(tmp_path)
    own = pd.DataFrame(rows)[lambda t: t["participant_id"] == "02"]
    heat = own["target"] == "heat"
    assert score(scores, "02", "auroc") == pytest.approx(roc_auc_score(heat, own["p_heat"]))
    right = own["predicted"] == own["target"]
    assert score(scores, "02", "accuracy") == pytest.approx(right.mean())
    balanced = (right[heat].mean() + right[~heat].mean()) / 2
    assert score(scores, "02", "balanced_accuracy") == pytest.approx(balanced)
    assert set(scores["role"]) == {"model"}
    assert set(scores["method"]) == {"M (h)"}


def test_scores_of_the_seeds_of_an_evaluation_are_averaged(tmp_path):
    rows = [
        {"method": "M", "head": "h", "seed": seed, "fold": fold, "participant_id": "7",
         "target": 3.0, "predicted": 3.0 + seed + 1}
        for seed, fold in ((0, 1), (1, 0))
    ]  # fmt: skip
    write_predictions(tmp_path, rows)
    assert score(person_scores(tmp_path), "7", "squared_error") == pytest.approx((1 + 4) / 2)


def test_draws_of_few_events_are_scored_apart_and_averaged(tmp_path):
    """A shift between draws would change the AUROC of their events together; ties count by half."""
    rng = np.random.default_rng(1)
    rows = [
        {"method": "M", "head": "h", "seed": 0, "fold": None, "draw": draw, "participant_id": "3",
         "target": "ab"[event % 2], "p_a": 1 - p, "p_b": p, "predicted": "ab"[p > 0.5]}
        for draw in range(5) for event in range(12)
        for p in [round(rng.uniform() / 5 + draw / 5, 1)]
    ]  # fmt: skip
    rows += [{**rows[0], "participant_id": "4"}]  # of one class only
    write_predictions(tmp_path, rows)
    scores, table = person_scores(tmp_path), pd.DataFrame(rows[:-1])
    expected = [roc_auc_score(of["target"] == "b", of["p_b"]) for _, of in table.groupby("draw")]
    assert score(scores, "3", "auroc") == pytest.approx(np.mean(expected))
    assert roc_auc_score(table["target"] == "b", table["p_b"]) != pytest.approx(np.mean(expected))
    assert np.isnan(score(scores, "4", "auroc"))


def test_people_scored_by_the_protocol_are_taken_as_they_are(tmp_path):
    (tmp_path / "people.csv").write_text(
        "protocol,variant,method,participant_id,r2,r\n"
        "imputation,random,model,01,.5,.8\nimputation,networks,model,01,.4,.7\n"
    )
    scores = person_scores(tmp_path)
    half = scores[scores["variant"] == "random"]
    assert score(half, "01", "r2") == 0.5
    assert score(half, "01", "r") == 0.8
    assert len(scores) == 4


def test_what_a_row_is_to_a_comparison():
    assert role_of("model", "model") == "model"
    assert role_of("baseline", "random_weights") == "untrained"
    assert role_of("baseline", "fc") == "raw"
    assert role_of("baseline", "majority") == "other"
    assert role_of("baseline", "chance") == "other"
    assert role_of("control", "phase_randomised") == "other"
    assert role_of("baseline", "untrained.predictor") == "untrained"
    assert role_of("readout", "model.encoder") == "other"
    assert role_of("baseline", "var") == "raw"
    assert role_of("joint", "fc+model") == "other"


def test_a_folder_without_scores_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither people.csv nor predictions.tsv"):
        person_scores(tmp_path)
