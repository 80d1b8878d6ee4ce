"""Arrow data sets as Brainmarks keeps them: units, ROI order, splits, labels of people."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from src.datasets.folder import DataFolder
from src.datasets.prepare.arrow import SPLIT_OF, import_arrow, load_targets
from src.utils.errors import UserError

N_ROIS = 30
BATCHES = {"train": [["a", "b"], ["a"]], "validation": [["c"]], "test": [["d"]]}


def array2d(arrays, kind):
    """A column of matrices as the storage of `datasets.Array2D`: lists of lists."""
    rows = [array.astype(kind.to_pandas_dtype()).tolist() for array in arrays]
    return pa.array(rows, pa.list_(pa.list_(kind)))


def field(name, kind):
    metadata = {"ARROW:extension:name": "datasets.features.features.Array2DExtensionType"}
    return pa.field(name, pa.list_(pa.list_(kind)), metadata=metadata)


def write_batches(path, batches, *, n_rois=N_ROIS, columns=(), drop=(), file_format=False):
    """Write batches of people; return each person's series [T, R] in original units, in order."""
    rng = np.random.default_rng(sum(map(len, batches)))
    schema = pa.schema(
        [
            pa.field("sub", pa.string()),
            pa.field("run", pa.int32()),
            pa.field("gender", pa.string()),
            pa.field("tr", pa.float32()),
            field("bold", pa.float16()),
            field("mean", pa.float32()),
            field("std", pa.float32()),
            *(pa.field(name, pa.int32()) for name, _ in columns),
        ]
    )
    series, made = [], []
    for people in batches:
        bold = [rng.normal(size=(40 + i, n_rois)).astype(np.float16) for i in range(len(people))]
        mean = [rng.normal(9000, 500, (1, n_rois)).astype(np.float32) for _ in people]
        std = [rng.uniform(20, 90, (1, n_rois)).astype(np.float32) for _ in people]
        series += [b.astype(np.float32) * s + m for b, m, s in zip(bold, mean, std, strict=True)]
        arrays = [
            pa.array(people),
            pa.array(range(len(people)), pa.int32()),
            pa.array(["F"] * len(people)),
            pa.array([0.8] * len(people), pa.float32()),
            array2d(bold, pa.float16()),
            array2d(mean, pa.float32()),
            array2d(std, pa.float32()),
            *(pa.array([value] * len(people), pa.int32()) for _, value in columns),
        ]
        made.append(pa.record_batch(arrays, schema=schema))
    keep = [name for name in schema.names if name not in drop]
    made = [batch.select(keep) for batch in made]
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_file if file_format else pa.ipc.new_stream
    with new(str(path), made[0].schema) as writer:
        for batch in made:
            writer.write_batch(batch)
    return series


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "aabc.schaefer400_tians3.arrow"
    for split, batches in BATCHES.items():
        write_batches(root / split / "data-00000-of-00001.arrow", batches)
    return root


@pytest.mark.parametrize("file_format", [False, True])
def test_series_are_in_the_units_before_normalisation(tmp_path, file_format):
    root = tmp_path / "x.schaefer400_tians3.arrow"
    series = write_batches(root / "train/a.arrow", BATCHES["train"], file_format=file_format)
    import_arrow(root, tmp_path / "out")
    folder = DataFolder(tmp_path / "out")
    assert len(folder.runs) == 3
    for row, expected in enumerate(series):
        np.testing.assert_array_equal(folder.series(row), expected.T)


def test_data_without_mean_and_std_are_kept(tmp_path):
    root = tmp_path / "x.arrow"
    write_batches(root / "train/a.arrow", [["a"]], drop=("mean", "std"))
    import_arrow(root, tmp_path / "out")
    assert abs(DataFolder(tmp_path / "out").series(0).std() - 1) < 0.1


def test_table(root, tmp_path):
    mapping = tmp_path / "age.json"
    mapping.write_text(json.dumps({"a": 61.5, "c": 70, "d": None}))
    assert import_arrow(root, tmp_path / "out", targets=load_targets([f"age={mapping}"])) == []
    folder = DataFolder(tmp_path / "out")
    runs = folder.runs
    assert folder.atlas == "Tian-S3+Schaefer400-17n"
    assert runs["participant_id"].tolist() == ["a", "b", "a", "c", "d"]
    assert runs["run"].tolist() == ["01", "01", "02", "01", "01"]
    assert runs["split"].tolist() == ["train"] * 3 + ["valid", "test"]
    assert runs["source_run"].tolist() == [0, 1, 0, 0, 0]
    assert set(runs["gender"]) == {"F"}
    assert set(runs["tr"]) == {0.8}
    assert runs["age"].fillna(-1).tolist() == [61.5, -1, 61.5, 70, -1]


def test_sessions(tmp_path):
    root = tmp_path / "x.arrow"
    write_batches(root / "train/a.arrow", [["a", "b"]], columns=[("ses", 2)])
    write_batches(root / "train/b.arrow", [["a"]], columns=[("ses", 3)])
    import_arrow(root, tmp_path / "out")
    keys = DataFolder(tmp_path / "out").runs[["participant_id", "session", "run"]]
    assert keys.values.tolist() == [["a", "2", "01"], ["b", "2", "01"], ["a", "3", "01"]]


def test_order_of_rois_follows_the_labels(tmp_path):
    root = tmp_path / "x.arrow"
    series = write_batches(root / "train/a.arrow", [["a"]])[0]
    labels = [f"17Networks_LH_Vis_{i}" for i in range(20)] + [f"HIP-{i}" for i in range(10)]
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    import_arrow(root, tmp_path / "out", roi_labels=tmp_path / "labels.txt")
    folder = DataFolder(tmp_path / "out")
    assert folder.roi_labels == (*labels[20:], *labels[:20])
    np.testing.assert_array_equal(folder.series(0), np.roll(series.T, 10, axis=0))


def test_folders_of_other_names(root, tmp_path):
    write_batches(root / "testid" / "a.arrow", [["e"]])
    assert import_arrow(root, tmp_path / "a") == ["testid"]
    assert import_arrow(root, tmp_path / "b", splits={**SPLIT_OF, "testid": "test"}) == []
    assert DataFolder(tmp_path / "b").runs["split"].tolist().count("test") == 2
    with pytest.raises(UserError, match="Did you mean 'test'"):
        import_arrow(root, tmp_path / "c", splits={**SPLIT_OF, "testid": "tests"})


def test_a_person_in_two_splits_is_refused(root, tmp_path):
    write_batches(root / "test" / "b.arrow", [["a"]])
    with pytest.raises(UserError, match="belongs to one split"):
        import_arrow(root, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_roi_without_variance_is_reported(tmp_path):
    """Brainmarks gives an empty parcel zeros; its mean and std are then 0 as well."""
    root = tmp_path / "x.arrow"
    write_batches(root / "train/a.arrow", [["a"]])
    content = (root / "train/a.arrow").read_bytes()  # not mapped: the file is written again
    batch = next(iter(pa.ipc.open_stream(content)))
    std = np.ones((1, N_ROIS))
    std[0, 4] = 0
    changed = batch.set_column(6, batch.schema.field("std"), array2d([std], pa.float32()))
    with pa.ipc.new_stream(str(root / "train/a.arrow"), changed.schema) as writer:
        writer.write_batch(changed)
    import_arrow(root, tmp_path / "out")
    assert DataFolder(tmp_path / "out").runs["bad_rois"].tolist() == ["ROI-005"]


def test_files_that_do_not_fit(root, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="found no folder"):
        import_arrow(tmp_path / "nowhere", out)
    path = root / "validation" / "data-00000-of-00001.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut short"):
        import_arrow(root, out)
    for drop, message in ((("tr",), "no column tr"), (("std",), "without both")):
        write_batches(path, [["c"]], drop=drop)
        with pytest.raises(UserError, match=message):
            import_arrow(root, out)
    write_batches(path, [["c"]], n_rois=29)
    with pytest.raises(UserError, match=r"has 29 ROIs, .* has 30"):
        import_arrow(root, out)
    assert not out.exists()  # all that was found out before anything was written


def test_target_files(tmp_path):
    (tmp_path / "list.json").write_text("[1, 2]")
    for pair, message in (
        ("age", "NAME=FILE"),
        ("split=x.json", "NAME=FILE"),
        (f"age={tmp_path / 'missing.json'}", "No such file"),
        (f"age={tmp_path / 'list.json'}", "JSON object"),
    ):
        with pytest.raises(UserError, match=message):
            load_targets([pair])


def test_command_line(root, tmp_path):
    write_batches(root / "testid" / "a.arrow", [["e"]])
    command = [sys.executable, "-m", "src.datasets.prepare.arrow", "--root", str(root)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Left out" in done.stdout
    assert "--split testid=" in done.stdout
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "already holds a data set" in done.stderr
