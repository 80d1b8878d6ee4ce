"""The paper's numbers beside these, and those of them that calling everyone one class reaches."""

from downstream_tasks.report.cells import METRIC_TITLES
from downstream_tasks.report.results import Results

_SAME_F1 = 0.02  # how near to the F1 of calling everyone positive says that this was done


def published_text(results: Results) -> str:
    """The published numbers of the task, with a warning where a majority class reaches them."""
    if not results.published:
        return ""
    values = ", ".join(f"{METRIC_TITLES[m]} {v:g}" for m, v in results.published.items())
    text = (
        f"Published for this task (method 7; fine-tuned ViT-B, the authors' data and splits): "
        f"{values}. Numbers from other people, splits or synthetic data are not comparable."
    )
    return " ".join([text, *majority_warnings(results)])


def majority_warnings(results: Results) -> list[str]:
    """Why the published accuracy may say nothing: by its own F1, and by the people at hand.

    Calling everyone positive has recall 1 and a precision that is the accuracy a, and so an F1 of
    2 a / (1 + a). The paper gives no numbers of people by class, but it gives both of these.
    """
    found, published = [], results.published
    accuracy, f1 = published.get("accuracy"), published.get("f1")
    if accuracy is None:
        return found
    if f1 is not None and abs(f1 - 2 * accuracy / (1 + accuracy)) < _SAME_F1:
        found.append(
            f"**The published numbers are those of a majority class**: calling everyone positive "
            f"at an accuracy of {accuracy:g} has an F1 of {2 * accuracy / (1 + accuracy):.3f}."
        )
    counts = results.cohort.class_counts
    if counts:
        largest = max(counts, key=counts.__getitem__)
        share = counts[largest] / sum(counts.values())
        if share >= accuracy:
            found.append(
                f"**The majority class reaches the published accuracy here**: {share:.3f} of the "
                f"{results.unit}s at hand are {largest}."
            )
    return found
