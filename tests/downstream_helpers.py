"""Small cohorts made by hand, for the tests of the downstream evaluation."""

import numpy as np
import pandas as pd

from downstream_tasks.cohort import Cohort


def make_cohort(
    y: np.ndarray,
    *,
    classes: tuple[str, ...] = (),
    runs: int = 1,
    families: list[str] | None = None,
    split: list[str] | None = None,
) -> Cohort:
    """A cohort of len(y) people with ``runs`` runs each, examples in person order."""
    people = [f"sub-{i:03d}" for i in range(len(y))]
    repeat = np.repeat(np.arange(len(y)), runs)
    examples = pd.DataFrame(
        {
            "row": np.arange(len(repeat)),
            "start": -1,
            "participant_id": np.array(people)[repeat],
            "split": np.array(split or ["train"] * len(y))[repeat],
            "group": np.array(families or people)[repeat],
            "unit": repeat,
        }
    )
    return Cohort(
        examples, np.asarray(y)[repeat], classes, pd.DataFrame({"participant_id": people})
    )


def separable(n: int, n_features: int, effect: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features ``[n, F]`` and two balanced classes ``effect`` SD apart in the first feature."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, n_features)).astype(np.float32)
    x[:, 0] += effect * y
    return x, y
