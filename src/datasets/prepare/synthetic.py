"""Seeded synthetic data: people whose runs have the group FC of brain networks, and vary around it.

    python -m src.datasets.prepare.synthetic --out data/synthetic

For tests, and for trying the published configuration without access to UKB. Regional series are
modelled, not images: a run ``[R, T]`` is ``mixing @ noise`` with the spectrum of BOLD. Nothing
learned on it says anything about brains.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.arguments import HelpFormatter
from ...utils.errors import PACKAGE, UserError, run_main
from ...utils.progress import progress_bar
from ..folder import DataFolder
from ..folder.format import DESCRIPTION_FILE
from ..folder.writer import FolderWriter
from .population import FAMILIES, FAMILY_SPREAD, GROUP_FC, Population
from .splits import split_by_count


def already_made(out: Path, provenance: dict[str, Any]) -> bool:
    """Whether ``out`` is a finished folder made with exactly these settings."""
    return (out / DESCRIPTION_FILE).exists() and (
        DataFolder(out).description["provenance"] == provenance
    )


def write_synthetic(
    out: Path,
    n_people: int,
    *,
    n_rois: int = 450,
    frames: int = 490,
    tr: float = 0.735,
    runs: int = 1,
    valid: int | None = None,
    test: int | None = None,
    group_fc: str = "model",
    seed: int = 0,
) -> DataFolder:
    """Write a synthetic data-set folder; the same arguments give the same bytes.

    Args:
        out: the folder. If it was made with the same arguments it is left as it is.
        n_people, runs: number of people, and of runs of each.
        n_rois, frames, tr: shape of a run and its repetition time in seconds (default as UKB).
        valid, test: people for validation and for the test (default a tenth of them each, at
            least one).
        group_fc: "model", or "brainspace" for real cortical FC at 450, 150 or 90 ROIs.

    Raises:
        UserError: if another data set is there, or a number is impossible.
    """
    for name, value, least in (("n_people", n_people, 3), ("frames", frames, 2), ("runs", runs, 1)):
        if value < least:
            raise UserError(f"{name} is {value}, it must be {least} or more.")
    if tr <= 0:
        raise UserError(f"tr is {tr}, it must be a positive number of seconds.")
    tenth = max(1, n_people // 10)
    valid, test = tenth if valid is None else valid, tenth if test is None else test
    provenance = {
        "source": "simulated by src.datasets.prepare.synthetic; not data of people",
        "settings": {
            **{"n_people": n_people, "n_rois": n_rois, "frames": frames, "tr": tr, "runs": runs},
            **{"valid": valid, "test": test, "group_fc": group_fc, "seed": seed},
        },
    }
    if already_made(out, provenance):
        print(f"{out} is there already, nothing to do.")
        return DataFolder(out)
    population = Population.draw(n_rois, group_fc, seed)
    people = [f"synth-{i:05d}" for i in range(n_people)]
    split = split_by_count(people, valid=valid, test=test, seed=seed)
    with FolderWriter(
        out,
        roi_labels=population.atlas.labels,
        atlas=f"synthetic-{n_rois}",
        provenance=provenance,
    ) as writer:
        for i, person in enumerate(progress_bar(people, desc="people", unit="person")):
            rng = np.random.default_rng([seed, 2, i])
            gain = rng.normal(0, FAMILY_SPREAD, (len(FAMILIES), len(FAMILIES)))
            for run in range(runs):
                writer.add_run(
                    population.run(rng, gain, frames, tr),
                    participant_id=person,
                    run=f"{run + 1:02d}",
                    tr=tr,
                    split=split[person],
                )
    return DataFolder(out)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PACKAGE}.datasets.prepare.synthetic",
        description="Write a seeded synthetic data set; the defaults have the shape of UKB runs.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("data/synthetic"), help="folder to write")
    parser.add_argument("--n_people", type=int, default=64, help="number of people")
    parser.add_argument("--n_rois", type=int, default=450, help="ROIs; 450 is the published order")
    parser.add_argument("--frames", type=int, default=490, help="frames of a run")
    parser.add_argument("--tr", type=float, default=0.735, help="repetition time, seconds")
    parser.add_argument("--runs", type=int, default=1, help="runs of each person")
    parser.add_argument("--valid", type=int, help="people for validation (default: a tenth)")
    parser.add_argument("--test", type=int, help="people for the test (default: a tenth)")
    parser.add_argument(
        "--group_fc", choices=GROUP_FC, default="model", help="brainspace: real cortical FC"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    args = vars(parser.parse_args())
    folder = write_synthetic(args.pop("out"), args.pop("n_people"), **args)
    print(
        f"{folder.path}: {folder.runs['participant_id'].nunique()} people, {len(folder.runs)} runs "
        f"x {folder.n_rois} ROIs x {folder.frames[0]} frames, TR {folder.runs['tr'].iloc[0]} s"
    )


if __name__ == "__main__":
    run_main(main)
