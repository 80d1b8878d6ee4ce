"""The release's HCP-Aging files: every form of x and y they can have, and those refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from src.datasets.folder import DataFolder
from src.datasets.prepare.hcpa import import_hcpa
from src.datasets.prepare.roi_labels import load_roi_labels
from src.datasets.prepare.synthetic import write_synthetic
from src.datasets.published_rois import PUBLISHED_ATLAS
from src.utils.errors import UserError

SIZES = {"train": 4, "valid": 2, "test": 3}


def write_files(root, *, as_x=list, as_y=list, n_rois=30, values=None):
    """Write the six files and return the series that they hold, per split."""
    root.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    data = {}
    for split, n in SIZES.items():
        data[split] = torch.randn(n, n_rois, 40, generator=generator)
        torch.save(as_x(data[split]), root / f"hca450_{split}_x.pt")
        labels = [i % 2 for i in range(n)] if values is None else values[:n]
        torch.save(as_y(labels), root / f"hca450_{split}_y.pt")
    return data


AS_X = {
    "list of tensors": list,
    "tensor": torch.Tensor.contiguous,
    "list of float64": lambda x: list(x.double()),
    "list of arrays": lambda x: [one.numpy() for one in x],
    "array": torch.Tensor.numpy,
}
AS_Y = {
    "list": list,
    "tensor": torch.tensor,
    "float tensor": lambda y: torch.tensor(y, dtype=torch.float32),
    "column": lambda y: torch.tensor(y)[:, None],
    "list of tensors": lambda y: [torch.tensor(one) for one in y],
    "array": np.array,
    "list of numpy numbers": lambda y: [np.int64(one) for one in y],
}


def check(folder, data):
    assert folder.runs["split"].tolist() == [s for s, n in SIZES.items() for _ in range(n)]
    for row in range(len(folder.runs)):
        split, number = folder.runs.loc[row, "participant_id"].split("-")
        np.testing.assert_array_equal(folder.series(row), data[split][int(number) - 1])
        assert folder.runs.loc[row, "sex"] == (int(number) - 1) % 2


@pytest.mark.parametrize("form", AS_X)
def test_forms_of_x(tmp_path, form):
    data = write_files(tmp_path, as_x=AS_X[form])
    import_hcpa(tmp_path, tmp_path / "out", target="sex")
    folder = DataFolder(tmp_path / "out")
    check(folder, data)
    assert set(folder.runs["tr"]) == {0.8}
    assert folder.atlas == PUBLISHED_ATLAS
    assert folder.roi_labels[0] == "ROI-001"


@pytest.mark.parametrize("form", AS_Y)
def test_forms_of_y(tmp_path, form):
    data = write_files(tmp_path, as_y=AS_Y[form])
    import_hcpa(tmp_path, tmp_path / "out", target="sex")
    check(DataFolder(tmp_path / "out"), data)
    # Classes stored as floats are classes.
    assert "\t0\n" in (tmp_path / "out" / "participants.tsv").read_text()


def test_old_file_format_and_continuous_labels(tmp_path):
    write_files(tmp_path, values=[61.5, 40.0, 77.25, 50.0])
    path = tmp_path / "hca450_train_x.pt"
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    import_hcpa(tmp_path, tmp_path / "out", target="age", tr=0.72)
    runs = DataFolder(tmp_path / "out").runs
    assert runs["age"].tolist()[:4] == [61.5, 40.0, 77.25, 50.0]
    assert set(runs["tr"]) == {0.72}


def test_roi_labels_come_from_a_folder_or_a_text_file(tmp_path):
    pretraining = write_synthetic(tmp_path / "pretraining", 3, n_rois=30, frames=40)
    write_files(tmp_path)
    import_hcpa(tmp_path, tmp_path / "a", target="sex", roi_labels=pretraining.path)
    folder = DataFolder(tmp_path / "a")
    assert (folder.atlas, folder.roi_labels) == (pretraining.atlas, pretraining.roi_labels)
    (tmp_path / "labels.txt").write_text("\n".join(f"r{i}" for i in range(30)))
    import_hcpa(tmp_path, tmp_path / "b", target="sex", roi_labels=tmp_path / "labels.txt")
    assert DataFolder(tmp_path / "b").roi_labels[29] == "r29"
    (tmp_path / "labels.txt").write_text("r1\nr2\n")
    with pytest.raises(UserError, match="2 labels, the series 30 ROIs"):
        import_hcpa(tmp_path, tmp_path / "c", target="sex", roi_labels=tmp_path / "labels.txt")
    with pytest.raises(UserError, match="No such file"):
        load_roi_labels(tmp_path / "missing.txt", 30, "x")


class Harmful:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_in_a_file_is_executed(tmp_path):
    write_files(tmp_path)
    torch.save([Harmful(tmp_path / "executed")], tmp_path / "hca450_train_x.pt")
    with pytest.raises(UserError, match="can run any code"):
        import_hcpa(tmp_path, tmp_path / "out", target="sex")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("hca450_valid_x.pt", None, "hca450_valid_x.pt: no such file"),
        ("hca450_valid_x.pt", torch.zeros(2, 3), r"expected a tensor \[n, R, T\]"),
        ("hca450_valid_x.pt", [], r"expected a tensor \[n, R, T\]"),
        ("hca450_valid_x.pt", torch.randn(2, 7, 40), "expected .30, T."),
        ("hca450_valid_y.pt", [1, 0, 1], "2 series, _y.pt 3 labels"),
        ("hca450_valid_y.pt", torch.zeros(2, 3), "label 0 is"),
        ("hca450_valid_y.pt", {"a": 1}, "expected a tensor or list"),
        ("hca450_valid_y.pt", b"not a file of torch", "damaged"),
    ],
)
def test_files_that_do_not_fit(tmp_path, name, content, message):
    write_files(tmp_path)
    path = tmp_path / name
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        import_hcpa(tmp_path, tmp_path / "out", target="sex")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_cut_file(tmp_path):
    write_files(tmp_path)
    path = tmp_path / "hca450_test_x.pt"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"hca450_test_x.pt.*damaged"):
        import_hcpa(tmp_path, tmp_path / "out", target="sex")


def test_command_line(tmp_path):
    write_files(tmp_path)
    command = [sys.executable, "-m", "src.datasets.prepare.hcpa", "--root", str(tmp_path)]
    command += ["--out", str(tmp_path / "out"), "--target"]
    done = subprocess.run([*command, "split"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --target split")
    done = subprocess.run([*command, "sex"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(DataFolder(tmp_path / "out").runs) == 9
