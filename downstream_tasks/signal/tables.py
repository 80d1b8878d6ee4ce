"""Tables of the signal protocols, for programs (comma-separated):

people.csv     protocol, variant, method, participant_id, r2, r: one line for each method and person
rois.csv       protocol, variant, method, roi (from 1), label, network, r2, r, over all test people
networks.csv   protocol, variant, method, network, participant_id, r2, r; where networks are known

``variant`` is the input: as_trained, keep or remove (of the global signal). ``method`` is stable:
a name of ``signal.baselines``; ``model.predictor``, ``model.encoder``, ``model.both`` and, where
there is one, ``model.head``; ``untrained.`` likewise; ``NAME+model`` and ``NAME+untrained`` for a
baseline with features stacked on it. ``r2`` is 1 - SSE / SST over all hidden values of the person,
SST about the training mean of each ROI, so that ``mean`` has 0; ``r`` is Pearson's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from downstream_tasks.signal.evaluate import Row
from src.utils.files import replacing

PEOPLE_FILE, ROIS_FILE, NETWORKS_FILE = "people.csv", "rois.csv", "networks.csv"

RowsOfVariants = Mapping[str, Sequence[Row]]


def write_tables(
    folder: Path,
    protocol: str,
    variants: RowsOfVariants,
    people: np.ndarray,
    tested: np.ndarray,
    roi_labels: Sequence[str],
    networks: Sequence[str] | None,
) -> None:
    """Write the three files; ``people`` are all ids, ``tested`` the numbers of the test people."""
    of_people, of_rois, of_networks = [], [], []
    for variant, rows in variants.items():
        for row in rows:
            keys = {"protocol": protocol, "variant": variant, "method": row.name}
            scores = row.scores
            of_people.append(_table(keys, scores.r2(), scores.r(), people, tested))
            r2, r = scores.of_rois(tested)
            rois = {"roi": np.arange(1, len(r2) + 1), "label": list(roi_labels)}
            rois |= {"network": ["n/a"] * len(r2) if networks is None else list(networks)}
            of_rois.append(pd.DataFrame(keys | rois | {"r2": r2, "r": r}).dropna(subset="r2"))
            for network in sorted(set(networks or ())):
                members = np.flatnonzero(np.array(networks) == network)
                found = (scores.r2(members), scores.r(members), people, tested)
                of_networks.append(_table(keys | {"network": network}, *found))
    for name, parts in (
        (PEOPLE_FILE, of_people),
        (ROIS_FILE, of_rois),
        (NETWORKS_FILE, of_networks),
    ):
        if parts:
            with replacing(folder / name) as file:
                pd.concat(parts).to_csv(file, index=False, na_rep="n/a", float_format="%.6g")


def _table(
    keys: dict[str, str], r2: np.ndarray, r: np.ndarray, people: np.ndarray, tested: np.ndarray
) -> pd.DataFrame:
    columns = keys | {"participant_id": people[tested], "r2": r2[tested], "r": r[tested]}
    return pd.DataFrame(columns)
