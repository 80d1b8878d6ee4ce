"""Features that several targets share: computed once for everyone who has any of the labels."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.features.registry import REGISTRY
from downstream_tasks.features.table import Representations

_EXAMPLE = ["row", "start"]  # which run, from which frame: what features depend on


class SharedRepresentations(Representations):
    """Features of a cohort, as rows of those of a larger one (:func:`everyone`)."""

    def __init__(self, config: DownstreamConfig, cohort: Cohort, whole: Representations) -> None:
        super().__init__(config, cohort, whole.pretrained, whole.device)
        self.whole = whole
        of_whole = pd.MultiIndex.from_frame(whole.cohort.examples[_EXAMPLE])
        self._rows = of_whole.get_indexer(pd.MultiIndex.from_frame(cohort.examples[_EXAMPLE]))

    def unadjusted(self, name: str, problem: Problem | None = None) -> np.ndarray:
        """As of :class:`Representations`; of everyone they are computed once."""
        if REGISTRY[name].fitted:  # on the training people of this target
            return super().unadjusted(name, problem)
        if name not in self._kept:
            self._kept[name] = rows_of(self.whole.unadjusted(name), self._rows)[:]
        return self._kept[name]

    def encoded(self, name: str, level: str) -> "np.ndarray | RowsOf":
        """As of :class:`Representations`; what is stored is read when it is asked for."""
        k = self.clips.per_example
        items = (self._rows[:, None] * k + np.arange(k)).ravel()
        return rows_of(self.whole.encoded(name, level), items)


class RowsOf:
    """Rows of an array, of which only those that are asked for are read from its file."""

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        self.array, self.rows = array, rows
        self.shape = (len(rows), *array.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, items: np.ndarray | slice) -> np.ndarray:
        return self.array[self.rows[items]]


def rows_of(array: np.ndarray, rows: np.ndarray) -> np.ndarray | RowsOf:
    """The rows of an array, which is itself where they are all of it."""
    if np.array_equal(rows, np.arange(len(array))):
        return array
    return RowsOf(array, rows)


def everyone(cohorts: Sequence[Cohort]) -> Cohort:
    """The examples of all cohorts, each once, without labels."""
    examples = pd.concat([cohort.examples for cohort in cohorts], ignore_index=True)
    examples = examples.drop_duplicates(_EXAMPLE).sort_values(_EXAMPLE, ignore_index=True)
    examples["unit"] = np.arange(len(examples))
    return Cohort(examples, np.zeros(len(examples)), (), examples[["participant_id"]])
