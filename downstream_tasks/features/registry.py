"""What may stand in a table of results: the model, its readouts, baselines and controls.

A new one is an entry of ``REGISTRY``, nothing else: configuration, features, table and fingerprint
read it there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from downstream_tasks.features import baselines, connectivity, controls, readouts
from src.utils.errors import nearest

MODEL_NAME = "Brain-JEPA"

Kind = Literal["model", "readout", "baseline", "control", "joint"]
Reads = Literal["nothing", "run", "whole_run", "clip", "patch", "encoder"]


@dataclass(frozen=True)
class Representation:
    """One entry: how its row is called, and what is computed from what.

    Attributes:
        name: in ``evaluation.baselines``; of a readout in ``evaluation.level`` and ``readouts``.
        title: of its row.
        kind: what the row is to the reader. ("joint" is a baseline together with the model; such
            rows have no entry.)
        reads: what ``function`` is given.

            - ``"nothing"``: ``(y_train, n_classes, n_examples)``; it returns the scores of all
              examples, and no head is fitted.
            - ``"run"``: the run as it is stored, ``[R, T]``: the frames of its clips one after
              another, or all frames (``evaluation.baseline_frames``); of an event its scored patch.
              Like the following three it returns a vector.
            - ``"whole_run"``: all frames of the run as it is stored.
            - ``"clip"``: the normalised clip that the encoder sees, ``[R, T]``; the vectors of
              several clips are averaged.
            - ``"patch"``: the scored patch of that clip; events only.
            - ``"encoder"``: clips ``[B, 1, R, T]`` and one seed per clip; it returns what the
              encoder is shown in their place. ``None`` shows them as they are. The function of a
              readout is given tokens ``[B, R, P, D]`` instead and returns what is kept of them.
        event_title: of the row where examples are events, if it differs.
        regression_title, survival_title: of the row where the target is a number, or a time to an
            event, if it differs.
        plain_head: it has a row with logistic or ridge regression whatever the protocol's head is,
            as others report it (Brainmarks).
        fitted: ``function`` is given the training series (a sequence, each read when asked for) and
            returns the function of a series; it is fitted anew for every training set.
        by_patch: the series comes as patches, ``[R, P, frames]``.
        untrained: the encoder has random weights.
    """

    name: str
    title: str
    kind: Kind
    reads: Reads
    function: Callable[..., Any] | None = None
    event_title: str | None = None
    regression_title: str | None = None
    survival_title: str | None = None
    plain_head: bool = False
    fitted: bool = False
    by_patch: bool = False
    untrained: bool = False

    @property
    def is_control(self) -> bool:
        """Whether it is the encoder, but with other weights or on other clips than the model."""
        return self.reads == "encoder" and self.kind in ("baseline", "control")

    def title_of(self, events: bool, target_type: str) -> str:
        """Title of the row where examples are events, and by ``data.type``."""
        if events and self.event_title:
            return self.event_title
        titles = {"regression": self.regression_title, "survival": self.survival_title}
        return titles.get(target_type) or self.title


REGISTRY: dict[str, Representation] = {
    entry.name: entry
    for entry in (
        Representation("model", MODEL_NAME, "model", "encoder"),
        Representation(
            "pooled",
            f"{MODEL_NAME}, mean of the tokens",
            "readout",
            "encoder",
            readouts.mean_of_tokens,
        ),
        Representation(
            "roi", f"{MODEL_NAME}, mean of each ROI", "readout", "encoder", readouts.mean_of_rois
        ),
        Representation(
            "connectivity",
            f"{MODEL_NAME}, feature connectivity",
            "readout",
            "encoder",
            readouts.feature_connectivity,
        ),
        Representation(
            "majority",
            "Majority class",
            "baseline",
            "nothing",
            baselines.training_prior,
            regression_title="Mean of the training people",
            survival_title="Same risk for everyone",
        ),
        # FC keeps its name with events: rows are compared with it.
        Representation(
            "fc", "FC", "baseline", "run", baselines.functional_connectivity, plain_head=True
        ),
        Representation(
            "fc_run",
            "FC of the whole run",
            "baseline",
            "whole_run",
            baselines.functional_connectivity,
            plain_head=True,
        ),
        Representation(
            "fc_partial",
            "FC, partial correlation",
            "baseline",
            "run",
            connectivity.partial_correlation,
        ),
        Representation(
            "fc_tangent",
            "FC, tangent space",
            "baseline",
            "run",
            connectivity.fit_tangent,
            fitted=True,
        ),
        Representation(
            "fc_coskewness",
            "FC in the subspace of co-skewness",
            "baseline",
            "run",
            connectivity.fit_coskewness,
            fitted=True,
        ),
        Representation(
            "lagged_fc",
            "Lagged FC (one frame)",
            "baseline",
            "run",
            connectivity.lagged_correlation,
        ),
        Representation(
            "autocorrelation",
            "ROI autocorrelation (one frame)",
            "baseline",
            "run",
            connectivity.autocorrelation,
        ),
        Representation(
            "power_covariance",
            "Covariance of power (windows)",
            "baseline",
            "run",
            connectivity.power_covariance,
        ),
        Representation(
            "fc_clips",
            "FC of the clips",
            "baseline",
            "clip",
            baselines.functional_connectivity,
            event_title="FC of the whole clip",
        ),
        Representation(
            "roi_stats",
            "ROI mean and variance",
            "baseline",
            "run",
            baselines.roi_statistics,
            event_title="ROI mean and variance (scored patch)",
        ),
        Representation(
            "log_sd",
            "ROI log SD",
            "baseline",
            "run",
            baselines.log_roi_sd,
            event_title="ROI log SD (scored patch)",
        ),
        Representation(
            "log_sd_clips",
            "ROI log SD of the clips",
            "baseline",
            "clip",
            baselines.log_roi_sd,
            event_title="ROI log SD (whole clip)",
        ),
        Representation("raw_clip", "Raw clip (whole)", "baseline", "clip", baselines.raw_values),
        Representation(
            "patch_means",
            "Patch means (whole clip)",
            "baseline",
            "clip",
            baselines.patch_means,
            by_patch=True,
        ),
        Representation(
            "raw_patch", "Raw values of the scored patch", "baseline", "patch", baselines.raw_values
        ),
        Representation(
            "patch_mean",
            "Mean of the scored patch",
            "baseline",
            "patch",
            baselines.patch_means,
            by_patch=True,
        ),
        Representation(
            "random_weights", "Untrained encoder", "baseline", "encoder", untrained=True
        ),
        Representation(
            "time_permuted_jointly",
            f"{MODEL_NAME}, frames shuffled, all ROIs alike",
            "control",
            "encoder",
            controls.permute_jointly,
        ),
        Representation(
            "time_permuted_per_roi",
            f"{MODEL_NAME}, frames shuffled in each ROI",
            "control",
            "encoder",
            controls.permute_per_roi,
        ),
        Representation(
            "phase_randomised",
            f"{MODEL_NAME}, phases randomised",
            "control",
            "encoder",
            controls.randomise_phases,
        ),
        Representation(
            "held_constant",
            f"{MODEL_NAME}, held constant",
            "control",
            "encoder",
            controls.hold_constant,
        ),
    )
}


# What is computed from a series has a row of the series without its global signal, which by itself
# changes what can be decoded (method 10): a model trained without it is compared with these.
WITHOUT_GLOBAL_SIGNAL = (
    "fc",
    "fc_run",
    "fc_clips",
    "roi_stats",
    "log_sd",
    "log_sd_clips",
    "raw_clip",
    "patch_means",
    "raw_patch",
    "patch_mean",
)
_REMOVED = "global signal removed"


def _without_global_signal(entry: Representation) -> Representation:
    event_title = entry.event_title and f"{entry.event_title}, {_REMOVED}"
    return replace(
        entry,
        name=f"{entry.name}_gsr",
        title=f"{entry.title}, {_REMOVED}",
        function=partial(baselines.after_removal, features=entry.function),
        event_title=event_title,
    )


REGISTRY |= {
    entry.name: entry
    for entry in (_without_global_signal(REGISTRY[name]) for name in WITHOUT_GLOBAL_SIGNAL)
}


def joint_name(baseline: str) -> str:
    """Name of the representation that is ``baseline`` together with the model."""
    return f"{baseline}+model"


def names_of(*kinds: Kind) -> list[str]:
    """Names of the entries of these kinds, in their order."""
    return [name for name, entry in REGISTRY.items() if entry.kind in kinds]


def explain_names(names: tuple[str, ...], allowed: list[str]) -> str:
    """Text of what is allowed, with the nearest name of the first in ``names`` that is not."""
    wrong = next((name for name in names if name not in allowed), "")
    return f"names of {', '.join(allowed)}.{nearest(wrong, allowed)}".rstrip(".")
