"""What qualifies an evaluation reaches its results, not only the log."""

import dataclasses
import shutil

import pytest
import torch

from downstream_tasks import main_finetune, main_linearprobe
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.report.folder import clear_results, written_files
from downstream_tasks.report.results import Results
from src.utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def make_config(files, tmp_path):
    def make(protocol: str = "logistic", seeds: int = 1, **data) -> DownstreamConfig:
        values = {
            "name": "small",
            "protocol": protocol,
            "output_root": str(tmp_path),
            "data": {"data_path": str(files[0]), "target": "sex", "num_workers": 0} | data,
            "model": {"load_path": str(files[1])},
            "evaluation": {
                "num_seed": seeds,
                "n_exchanges": 20,
                "baselines": [] if protocol == "fingerprint" else ["majority"],
            },
            "heads": {"C": [1e-5, 1e-4]},
            "fine_tune": {"epochs": 1},
        }
        return task_from_dict(values, "test")

    return make


def test_results_say_what_qualifies_them(make_config, files, tmp_path):
    """A task file for fast data, copied to data with a TR of 2 s and runs of 30 frames."""
    data = shutil.copytree(files[0], tmp_path / "data")
    table = (data / "participants.tsv").read_text()
    (data / "participants.tsv").write_text(table.replace("\tM\t", "\tn/a\t", 1))
    config = make_config(data_path=str(data), downsample=True, short_runs="pad")
    results = main_linearprobe.run(config, CPU)
    stored = Results.read(config.output_dir / "results.json")
    assert stored.notes == results.notes
    text = (config.output_dir / "results.md").read_text()
    for expected in (
        "sampling is stride 3, the checkpoint's is stride 1",
        "samples are 6 s apart, where the encoder of the paper has about 2 s; every frame has 2 s",
        "runs are shorter than a clip and end in zeros",
        "left out, no value of sex: 1",
        "test people have the id of someone that the encoder was pretrained on",
    ):
        assert any(expected in note for note in stored.notes), expected
        assert expected in text
    seen, tested = stored.checkpoint.test_people_in_pretraining, stored.splits[0].test
    assert stored.settings == {
        "time": "TR 2 s, every third frame: samples 6 s apart; clips of 16 samples, 96 s",
        "baselines of runs see": "the frames of the clips",
        "normalisation": "zscore_roi",
        "test people seen in pretraining": f"{seen} of {tested}, by id",
        "class weights": "none, as published",
    }
    assert "TR 2 s, every third frame" in text
    assert any("is at the edge of its grid" in note for note in stored.model.notes)
    assert "- Brain-JEPA (logistic): C 0.000" in text or "- Brain-JEPA (logistic): C 1e-05" in text


def test_clips_like_those_of_the_pretraining_need_no_note_on_time(make_config):
    notes = main_linearprobe.run(make_config(), CPU).notes
    assert not [note for note in notes if "sampl" in note or "zeros" in note]
    settings = main_linearprobe.run(make_config(target_tr=2.5), CPU).settings
    assert settings["time"] == "TR 2 s, resampled to 2.5 s; clips of 16 samples, 40 s"


def test_a_second_run_leaves_nothing_of_the_first(make_config, tmp_path):
    config = make_config("linear_probe", seeds=2)
    main_linearprobe.run(config, CPU)
    main_linearprobe.run(config, CPU, evaluate=True)
    folder = config.output_dir
    (folder / "my notes.txt").write_text("mine")
    (folder / "split_seed_of_mine.tsv").write_text("mine")
    (folder / "eval" / "mine.txt").write_text("mine")
    first = {path.name for path in written_files(folder)}
    assert {"split_seed1.tsv", "head_seed1.safetensors", "metrics.jsonl"} <= first
    (folder / "learning_curve.tsv").write_text("of an earlier study")
    events = [path for path in written_files(folder) if "tfevents" in path.name]
    logistic = dataclasses.replace(make_config(), protocol="knn", output_root=str(tmp_path))
    (logistic.output_dir).parent.mkdir(exist_ok=True)
    folder.rename(logistic.output_dir)  # the same folder, for a run that trains nothing by epochs
    main_linearprobe.run(logistic, CPU)
    left = {str(path.relative_to(logistic.output_dir)) for path in logistic.output_dir.rglob("*")}
    assert not [name for name in left if "seed1" in name or "tfevents" in name]
    assert not {"metrics.jsonl", "learning_curve.tsv"} & left
    assert "head_seed0.safetensors" not in left  # nearest neighbours have no weights
    assert {"my notes.txt", "split_seed_of_mine.tsv", "eval/mine.txt", "log.txt"} <= left
    assert events


def test_a_split_of_the_folder_itself_may_be_used_again(make_config):
    config = make_config("knn", seeds=2)
    main_linearprobe.run(config, CPU)
    path = config.output_dir / "split_seed0.tsv"
    stored = path.read_text()
    again = make_config("knn")
    again.split.file, again.split.resample = str(path), False
    main_linearprobe.run(again, CPU)
    assert path.read_text() == stored
    again.split.file = str(config.output_dir / "none.tsv")
    before = set(config.output_dir.iterdir())
    with pytest.raises(UserError):
        main_linearprobe.run(again, CPU)
    assert set(config.output_dir.iterdir()) == before  # a run that cannot begin clears nothing


def test_a_fine_tuning_of_other_seeds_is_never_removed(make_config):
    """Three seeds, of which two are trained again: the third would be taken for one of the two."""
    config = make_config("fine_tune")
    state = config.output_dir / "seed2" / "finetune-latest.pth.tar"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"hours of work")
    with pytest.raises(UserError, match="seed2 already holds a run"):
        main_finetune.run(config, [CPU])
    clear_results(config.output_dir)
    assert state.exists()
