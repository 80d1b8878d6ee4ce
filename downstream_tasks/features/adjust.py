"""Feature tables adjusted for confounds and sites, fitted on the training people of each problem.

Every head gets its features through :class:`FeatureAdjustment`, so that no statistic of it is of a
test person: neither the effect of a confound nor that of a site.
"""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import pandas as pd

from downstream_tasks.cohort.confounds import confound_table, remove_linear, unseen_levels
from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem
from downstream_tasks.config import DataConfig
from src.utils.errors import UserError

_FEWEST_AT_A_SITE = 3  # ComBat estimates a variance per site and feature


class FeatureAdjustment:
    """Harmonisation of sites (``data.harmonize``), then removal of ``data.confounds``."""

    def __init__(self, data: DataConfig, cohort: Cohort) -> None:
        self.data, self.cohort = data, cohort

    def __call__(self, features: np.ndarray, problem: Problem, remove: bool) -> np.ndarray:
        """Features ``[n_examples, F]`` adjusted as the training examples of ``problem`` say.

        ``remove`` also removes the confounds.

        Raises:
            UserError: on a site or a level of a confound without training people.
        """
        train = problem.split.train
        if self.data.harmonize is not None:
            features = self._harmonised(features, problem)
        if remove:
            unseen_levels(self.cohort, self.data.confounds, problem.split, problem.name)
            table = confound_table(self.cohort, self.data.confounds)
            features = remove_linear(features, table, train).astype(np.float32)
        return features

    def check(self, problem: Problem) -> None:
        """Raise what :meth:`__call__` would, before there are features."""
        self._sites(problem)
        table = confound_table(self.cohort, self.data.confounds)
        unseen_levels(self.cohort, self.data.confounds, problem.split, problem.name)
        remove_linear(np.zeros(len(table)), table, problem.split.train)

    def settings(self) -> dict[str, str]:
        """What was done to the features, for the results."""
        data = self.data
        settings = {}
        if data.harmonize is not None:
            kept = f", {', '.join(data.harmonize_keep)} kept" if data.harmonize_keep else ""
            settings["harmonisation"] = (
                f"of all features over {data.harmonize}, by ComBat learnt on the training people "
                f"of each run{kept}"
            )
        if data.confounds:
            settings["confounds"] = (
                f"linear effects of {', '.join(data.confounds)}, estimated on the training people, "
                f"are removed from the {data.confounds_from} in the rows named so"
            )
        return settings

    def _sites(self, problem: Problem) -> np.ndarray | None:
        """Site of each example; each must have training examples."""
        if self.data.harmonize is None:
            return None
        key = "data.harmonize"
        sites = self.cohort.column(self.data.harmonize, key).astype(str)
        train = problem.split.train
        of_training, counts = np.unique(sites[train], return_counts=True)
        enough = set(of_training[counts >= _FEWEST_AT_A_SITE])
        if few := sorted(set(sites) - enough):
            raise UserError(
                f"{key}: {problem.name} has fewer than {_FEWEST_AT_A_SITE} training runs of "
                f"{self.data.harmonize} {', '.join(few)}; the effect of a site is learnt from its "
                "training people. Leave such sites out (an empty target), or split so that every "
                "site is in training (split.source=cv)."
            )
        return sites

    def _harmonised(self, features: np.ndarray, problem: Problem) -> np.ndarray:
        sites, train = self._sites(problem), problem.split.train
        keep = confound_table(self.cohort, self.data.harmonize_keep, "data.harmonize_keep")
        return combat(features, sites, train, keep)


def combat(
    features: np.ndarray, sites: Sequence[str], train: np.ndarray, keep: np.ndarray
) -> np.ndarray:
    """Features harmonised over ``sites`` by ComBat learnt on the examples ``train``.

    ``keep`` ``[n_examples, K]`` holds covariates whose effects stay. Features that are constant
    within the training sites are left as they are. The model is applied to all examples at once:
    ``neuroHarmonize`` builds the design of the data it is applied to from the sites that occur
    there, and is wrong where a training site does not.

    Raises:
        UserError: if ``neuroHarmonize`` is not installed.
    """
    try:
        from neuroHarmonize import harmonizationApply, harmonizationLearn
    except ImportError as error:
        raise UserError(
            "data.harmonize needs neuroHarmonize: pip install neuroHarmonize==2.4.5 neuroCombat "
            "statsmodels"
        ) from error
    covariates = pd.DataFrame({f"keep{i}": column for i, column in enumerate(keep.T)})
    covariates.insert(0, "SITE", np.asarray(sites))
    values = features.astype(np.float64)
    one_site = pd.Series(covariates["SITE"].to_numpy()[train])
    spread = pd.DataFrame(values[train]).groupby(one_site.to_numpy()).var(ddof=1).to_numpy()
    varies = (spread > 0).all(axis=0)
    if not varies.any() or one_site.nunique() < 2:
        return features
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        model, _ = harmonizationLearn(
            values[np.ix_(train, varies)],
            covariates.iloc[train].reset_index(drop=True),
            seed=0,  # without one it seeds numpy's generator anew
        )
        values[:, varies] = harmonizationApply(values[:, varies], covariates, model)
    return values.astype(np.float32)
