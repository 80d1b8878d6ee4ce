"""Several targets in one run: a task for each, features in common."""

import pytest

from downstream_tasks.studies.targets import one_task_per_target
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import labelled_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return labelled_folder(tmp_path_factory.mktemp("targets") / "data")


def values_of(path, target, **changes):
    values = {"name": "small", "data": {"data_path": str(path), "target": target}}
    for section, keys in changes.items():
        values[section] = {**values.get(section, {}), **keys}
    return values


def test_one_target_is_the_task_itself(folder):
    values = values_of(folder, "sex", data={"type": "classification"})
    assert one_task_per_target(values, "test") == [values]


def test_the_type_of_each_is_told_by_its_column(folder):
    age, sex = one_task_per_target(values_of(folder, ["age", "sex"]), "test")
    assert (age["data"]["target"], age["data"]["type"]) == ("age", "regression")
    assert (sex["data"]["target"], sex["data"]["type"]) == ("sex", "classification")
    assert (age["data"]["beside"], sex["data"]["beside"]) == (["sex"], ["age"])


def test_what_differs_is_a_mapping_by_target(folder):
    values = values_of(
        folder,
        ["age", "sex"],
        data={"type": {"age": "regression"}, "classes": {"sex": ["M", "F"]}},
        evaluation={"metric": {"age": "pearson"}, "num_seed": 3},
        published={"sex": {"accuracy": 0.8}},
    )
    age, sex = one_task_per_target(values, "test")
    assert age["data"]["type"] == "regression"
    assert "classes" not in age["data"]
    assert age["evaluation"] == {"num_seed": 3, "metric": "pearson"}
    assert "published" not in age
    assert sex["data"]["classes"] == ["M", "F"]
    assert sex["data"]["type"] == "classification"
    assert sex["evaluation"] == {"num_seed": 3}
    assert sex["published"] == {"accuracy": 0.8}


def test_what_is_no_mapping_is_for_all_but_published_numbers(folder, caplog):
    values = values_of(
        folder, ["age", "sex"], data={"type": "classification"}, published={"accuracy": 0.8}
    )
    for task in one_task_per_target(values, "test"):
        assert task["data"]["type"] == "classification"
        assert "published" not in task
    assert "published does not say of which target" in caplog.text


@pytest.mark.parametrize(
    ("target", "changes", "message"),
    [
        ([], {}, "a list of several, each once"),
        (["age", "age"], {}, "each once"),
        (
            ["age", "sex"],
            {"data": {"classes": ["M", "F"]}},
            r"one list.*for 2 targets.*'data\.classes=\{sex: \[M, F\]\}'",
        ),
        (["age", "sexx"], {}, r"no target column 'sexx'. Did you mean 'sex'\?"),
        (
            ["age", "sex"],
            {"evaluation": {"metric": {"agee": "mse"}}},
            r"evaluation.metric has a value for 'agee'.* Did you mean 'age'\?",
        ),
    ],
)
def test_mistakes_name_the_key(folder, target, changes, message):
    with pytest.raises(UserError, match=message):
        one_task_per_target(values_of(folder, target, **changes), "test")


def test_a_few_numbers_are_asked_about(tmp_path):
    path = labelled_folder(tmp_path / "data", people=10)
    table = path / "participants.tsv"
    lines = table.read_text().splitlines()
    rows = [lines[0] + "\tstage"] + [f"{line}\t{i % 4}" for i, line in enumerate(lines[1:])]
    table.write_text("\n".join(rows) + "\n")
    with pytest.raises(UserError, match=r"4 different numbers in 'stage'.*data.type=\{stage: "):
        one_task_per_target(values_of(path, ["sex", "stage"]), "test")
