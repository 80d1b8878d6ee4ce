"""Published numbers that calling everyone one class reaches are marked."""

import pytest
from sklearn.metrics import accuracy_score, f1_score

from downstream_tasks.cohort.examples import CohortSummary
from downstream_tasks.report.published import published_text
from downstream_tasks.report.results import Results
from downstream_tasks.task_files import load_task

# Of every classification task; of one only the paper's own two numbers give it away.
TASKS = {
    "adni_ncmci": True,
    "adni_amyloid": False,
    "macc_ncmci": False,
    "oasis3_conversion": False,
    "camcan_depression": False,
    "hca_sex": False,
    "ukb_sex": False,
}


def text_of(published: dict[str, float], counts: dict[str, int]) -> str:
    n = sum(counts.values())
    return published_text(
        Results(
            **{"task": "t", "protocol": "fine_tune", "type": "classification", "target": "dx"},
            **{"unit": "person", "metrics": ("accuracy",), "main_metric": "accuracy"},
            cohort=CohortSummary(n, n, n, n, class_counts=counts),
            rows=(),
            published=published,
        )
    )


@pytest.mark.parametrize("task", TASKS)
def test_published_pairs_of_a_majority_class_are_marked(task):
    config = load_task(task)
    published = {"accuracy": config.published.accuracy, "f1": config.published.f1}
    text = text_of(published, {"a": 50, "b": 50})
    assert ("are those of a majority class" in text) == TASKS[task]
    assert "reaches the published accuracy here" not in text


def test_the_f1_of_calling_everyone_positive():
    y, everyone = [1] * 77 + [0] * 23, [1] * 100
    published = {"accuracy": accuracy_score(y, everyone), "f1": f1_score(y, everyone)}
    assert "has an F1 of 0.870" in text_of(published, {"a": 1, "b": 1})


def test_the_people_at_hand_may_reach_it_too():
    text = text_of({"accuracy": 0.69}, {"stable": 69, "converter": 31})
    assert "reaches the published accuracy here**: 0.690 of the persons at hand are stable" in text
    assert "reaches" not in text_of({"accuracy": 0.69}, {"stable": 68, "converter": 32})
    assert text_of({}, {"a": 1, "b": 1}) == ""
