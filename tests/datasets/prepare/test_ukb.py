"""The UKB importer: order, splits, refusals with their reason, going on after an interruption."""

import gzip
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from src.datasets.folder import DataFolder
from src.datasets.prepare import ukb as module
from src.datasets.prepare.participants import Assignment
from src.datasets.prepare.ukb import CORTEX_FILE, SUBCORTEX_FILE, import_ukb, read_runs
from src.utils.errors import UserError

SUBCORTEX = ["HIP-rh", "AMY-rh"]
CORTEX = ["17Networks_LH_VisCent_1", "17Networks_RH_TempPar_1", "17Networks_RH_Other_1"]


def write_person(root, person, *, subcortex=SUBCORTEX, cortex=CORTEX, frames=(20, 20), seed=0):
    """Write both files of a person and return the series [5, T] that they hold."""
    folder = root / "time_series" / person
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, sum(person.encode())])
    parts = []
    for name, labels, n in (
        (SUBCORTEX_FILE, subcortex, frames[0]),
        (CORTEX_FILE, cortex, frames[1]),
    ):
        parts.append(rng.normal(1000, 10, (len(labels), n)).round(3))
        table = pd.DataFrame(parts[-1], index=pd.Index(labels, name="label_name"))
        table.to_csv(folder / name)
    return parts


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "ukb"
    for i in range(6):
        write_person(root, f"100{i}")
    return root


PEOPLE = [f"100{i}" for i in range(6)]


def test_series_are_the_files_subcortex_first(tmp_path):
    parts = write_person(tmp_path, "1")
    assert import_ukb(tmp_path, ["1"], tmp_path / "out", Assignment(valid=0, test=0)) == []
    folder = DataFolder(tmp_path / "out")
    assert folder.roi_labels == (*SUBCORTEX, *CORTEX)
    np.testing.assert_array_equal(folder.series(0), np.concatenate(parts).astype(np.float32))
    assert folder.runs.loc[0, ["participant_id", "tr", "split"]].tolist() == ["1", 0.735, "train"]


def test_order_is_that_of_the_list_for_any_number_of_workers(root, tmp_path):
    people = PEOPLE[::-1]
    import_ukb(root, people, tmp_path / "a", Assignment(), workers=1)
    import_ukb(root, people, tmp_path / "b", Assignment(), workers=3)
    a, b = DataFolder(tmp_path / "a"), DataFolder(tmp_path / "b")
    assert a.runs["participant_id"].tolist() == people
    pd.testing.assert_frame_equal(a.runs, b.runs)
    np.testing.assert_array_equal(a.flat, b.flat)


def test_each_refused_run_has_its_reason(root, tmp_path):
    write_person(root, "2000", cortex=CORTEX[::-1])
    write_person(root, "2001", cortex=CORTEX[:2])
    write_person(root, "2002", frames=(20, 19))
    for i in range(3, 7):
        write_person(root, f"200{i}")
    folder = root / "time_series"
    (folder / "2003" / CORTEX_FILE).unlink()
    whole = (folder / "2004" / CORTEX_FILE).read_bytes()
    (folder / "2004" / CORTEX_FILE).write_bytes(whole[: len(whole) // 2])
    (folder / "2005" / CORTEX_FILE).write_bytes(gzip.compress(b"label_name,0\nA,what\n"))
    (folder / "2006" / SUBCORTEX_FILE).write_bytes(gzip.compress(b"name,0\nA,1\n"))
    people = ["2003", *PEOPLE, "2000", "2001", "2002", "2004", "2005", "2006", "nobody"]
    out = tmp_path / "out"
    refused = dict(import_ukb(root, people, out, Assignment(), workers=2))
    assert sorted(refused) == [*(f"200{i}" for i in range(7)), "nobody"]
    for person, reason in {
        "2000": "row 3 is '17Networks_RH_Other_1', expected '17Networks_LH_VisCent_1'",
        "2001": "4 ROIs, expected 5",
        "2002": "20 and 19 frames",
        "2003": "no such file",
        "2004": "ended before the end-of-stream marker",
        "2005": "could not convert string to float",
        "2006": "first column is 'name'",
        "nobody": "no such file",
    }.items():
        assert reason in refused[person]
    listed = pd.read_csv(out / "refused.tsv", sep="\t", dtype=str)
    assert sorted(listed["participant_id"]) == sorted(refused)
    assert DataFolder(out).runs["participant_id"].tolist() == PEOPLE


def test_bad_rois_are_reported_and_a_run_of_only_those_is_refused(root, tmp_path):
    parts = write_person(root, "3000")
    table = pd.DataFrame(parts[1], index=pd.Index(CORTEX, name="label_name"))
    table.iloc[0] = 7.0
    table.iloc[1, 3] = np.nan
    table.to_csv(root / "time_series" / "3000" / CORTEX_FILE)
    write_person(root, "3001")
    for name, labels in ((SUBCORTEX_FILE, SUBCORTEX), (CORTEX_FILE, CORTEX)):
        zeros = pd.DataFrame(np.zeros((len(labels), 20)), index=pd.Index(labels, name="label_name"))
        zeros.to_csv(root / "time_series" / "3001" / name)
    refused = import_ukb(root, ["1000", "3000", "3001"], tmp_path / "out", Assignment())
    assert [person for person, _ in refused] == ["3001"]
    assert "constant" in refused[0][1]
    folder = DataFolder(tmp_path / "out")
    assert folder.runs["bad_rois"].tolist()[1] == ";".join(CORTEX[:2])
    assert np.isfinite(folder.flat).all()


def test_nothing_readable_is_an_error(root, tmp_path):
    with pytest.raises(UserError, match=r"None of the runs .* the first: x: .*no such file"):
        import_ukb(root, ["x", "y"], tmp_path / "out", Assignment())
    assert len((tmp_path / "out" / "refused.tsv").read_text().splitlines()) == 3


def test_goes_on_after_an_interruption(root, tmp_path, monkeypatch):
    out, whole = tmp_path / "out", tmp_path / "whole"
    import_ukb(root, PEOPLE, whole, Assignment())
    real = module.read_runs

    def stopped(*args):
        for n, run in enumerate(real(*args)):
            if n == 3:
                raise KeyboardInterrupt
            yield run

    monkeypatch.setattr(module, "read_runs", stopped)
    with pytest.raises(KeyboardInterrupt):
        import_ukb(root, PEOPLE, out, Assignment())
    with pytest.raises(UserError, match="unfinished"):
        DataFolder(out)
    read = []
    monkeypatch.setattr(module, "read_runs", lambda r, p, w: read.extend(p) or real(r, p, w))
    import_ukb(root, PEOPLE, out, Assignment())
    assert read == PEOPLE[3:]
    np.testing.assert_array_equal(DataFolder(out).flat, DataFolder(whole).flat)
    pd.testing.assert_frame_equal(DataFolder(out).runs, DataFolder(whole).runs)
    # People who come later are added to the finished folder, and nobody changes split.
    write_person(root, "4000")
    import_ukb(root, ["4000", *PEOPLE], out, Assignment())
    assert DataFolder(out).runs["participant_id"].tolist() == [*PEOPLE, "4000"]
    with pytest.raises(UserError, match="begun with"):
        import_ukb(root, PEOPLE, out, Assignment(seed=1))


def test_a_killed_import_goes_on(root, tmp_path):
    """SIGKILL to the whole process group in the middle: what was committed stays."""
    for i in range(60):
        write_person(root, f"5{i:03d}")
    command = [sys.executable, "-m", "src.datasets.prepare.ukb", "--root", str(root)]
    command += ["--out", str(tmp_path / "out"), "--workers", "1"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while not (tmp_path / "out" / "writing.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "66 of 66 runs, 0 refused" in done.stdout
    assert len(DataFolder(tmp_path / "out").runs) == 66


def test_participants_table_gives_splits_and_phenotypes(root, tmp_path):
    table = tmp_path / "participants.tsv"
    table.write_text(
        "participant_id\tsplit\tage\tsex\n1000\ttrain\t61\tF\n1001\ttest\tn/a\tM\n1002\tn/a\t50\tM\n"
    )
    assignment = Assignment.load(table, valid=0.1, test=0.1, seed=0)
    refused = import_ukb(root, PEOPLE[:4], tmp_path / "out", assignment)
    assert dict(refused) == {
        "1002": "no split in the participants table",
        "1003": "not in the participants table",
    }
    runs = DataFolder(tmp_path / "out").runs
    assert runs["split"].tolist() == ["train", "test"]
    assert runs["age"].tolist()[0] == 61
    assert runs["age"].isna().tolist() == [False, True]
    assert runs["sex"].tolist() == ["F", "M"]


def test_reading_ahead_is_bounded(root, monkeypatch):
    submitted = []

    class Pool(module.ProcessPoolExecutor):
        def submit(self, function, *args):
            submitted.append(args)
            return super().submit(function, *args)

    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    runs = read_runs(root, PEOPLE * 3, 1)
    next(runs)
    assert len(submitted) == 3
    runs.close()


def test_command_line(root, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("1000\n1001\nmissing\n")
    command = [sys.executable, "-m", "src.datasets.prepare.ukb", "--root", str(root)]
    command += ["--ids", str(ids), "--out", str(tmp_path / "out"), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 of 3 runs, 1 refused" in done.stdout
    assert "missing: fMRI.Tian_Subcortex_S3_3T.csv.gz: no such file" in done.stdout
    command[command.index(str(root))] = str(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --root")
