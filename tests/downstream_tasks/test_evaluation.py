"""What every protocol checks first: whom a checkpoint has seen, its input, the metric."""

import dataclasses
import logging
import shutil

import numpy as np
import pytest
import torch

from downstream_tasks import evaluation as setup
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.evaluation import describe_checkpoint, prepare
from src.datasets.clip_input import ClipInput
from src.datasets.fmri import FMRIDataset
from src.datasets.folder import DataFolder
from src.datasets.input_profile import InputProfile
from src.pretrained.encoder import Pretrained
from src.pretrained.hub import BrainJEPAHub
from src.pretrained.load import load_pretrained
from src.utils.errors import UserError
from src.utils.person_ids import hash_ids
from tests.downstream_tasks.conftest import labelled_folder


@pytest.fixture
def make_config(files, tmp_path):
    def make(**sections: dict) -> DownstreamConfig:
        values = {
            "output_root": str(tmp_path),
            "data": {"data_path": str(files[0]), "target": "sex"},
            "model": {"load_path": str(files[1])},
            "evaluation": {"num_seed": 1},
        }
        for name, section in sections.items():
            values[name] = values.get(name, {}) | section
        return task_from_dict(values, "test")

    return make


@pytest.fixture
def pretend(monkeypatch):
    """Let the checkpoint be read as one that has other ``changes`` too."""

    def patch(**changes) -> None:
        def load(*args, **kwargs) -> Pretrained:
            return dataclasses.replace(load_pretrained(*args, **kwargs), **changes)

        monkeypatch.setattr(setup, "load_pretrained", load)

    return patch


def test_people_a_checkpoint_was_fine_tuned_on_are_not_tested(make_config, pretend):
    config = make_config()
    problem = prepare(config).problems[0]
    people = problem.cohort.people
    parts = {name: sorted(set(people[m])) for name, m in problem.split.parts().items()}
    head = {"head.weight": torch.zeros(2, 24)}
    pretend(head=head, split=parts)
    evaluation = prepare(config)  # its own test people
    about = describe_checkpoint(config, evaluation.pretrained)
    assert about.training_people == "in the checkpoint"
    for part in ("train", "valid"):
        swapped = parts | {part: parts["test"], "test": parts[part]}
        pretend(head=head, split=swapped)
        with pytest.raises(UserError, match=r"test people are among the training .* split\.file"):
            prepare(config)


def test_an_export_does_not_know_its_training_people(make_config, pretend, caplog):
    pretend(head={"head.weight": torch.zeros(2, 24)})
    config = make_config()
    evaluation = prepare(config)
    pretrained = evaluation.pretrained
    assert "people that it does not name" in caplog.text
    assert any("people that it does not name" in note for note in evaluation.notes)
    assert describe_checkpoint(config, pretrained).training_people == "unknown"
    named = make_config(split={"file": "split_seed0.tsv"})
    assert describe_checkpoint(named, pretrained).training_people == "as split.file says"


def test_test_people_of_the_pretraining_are_known_by_id(make_config, files, tmp_path, caplog):
    """Wherever the data are now, and through an export, which holds no id."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(files[0], moved)
    exported = tmp_path / "model"
    BrainJEPAHub.from_encoder(load_pretrained(files[1])).save_pretrained(exported)
    for path in (files[1], exported):
        config = make_config(data={"data_path": str(moved)}, model={"load_path": str(path)})
        with caplog.at_level(logging.INFO):
            evaluation = prepare(config)
        problem = evaluation.problems[0]
        column = problem.cohort.examples["split"].to_numpy()[problem.split.test]
        seen = problem.cohort.people[problem.split.test][column == "train"]
        assert evaluation.pretrained_on == len(seen) > 0
        said = f"{len(seen)} of 8 test people have the id of someone that the encoder was"
        assert said in caplog.messages[-1]
        assert caplog.messages[-1].endswith(", ".join(sorted(seen)))
        about = describe_checkpoint(config, evaluation.pretrained, evaluation.pretrained_on)
        assert about.test_people_in_pretraining == len(seen)
        assert about.training_people is None
        own = make_config(model={"load_path": str(path)}, split={"source": "folder"})
        assert prepare(own).pretrained_on == 0
    written = b"".join(path.read_bytes() for path in exported.iterdir())
    assert not [name for name in problem.cohort.people if name.encode() in written]


def test_the_same_folder_with_other_people_is_other_people(make_config, files, tmp_path, pretend):
    pretend(training_people=hash_ids(["someone", "else"]))
    assert prepare(make_config()).pretrained_on == 0
    pretend(training_people=None)
    assert prepare(make_config()).pretrained_on is None


def test_another_input_than_in_pretraining_is_said(make_config, caplog):
    own = make_config(split={"source": "folder"})
    assert prepare(own).notes == ()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    changes = {"normalization": "none", "stride": 3, "short_runs": "pad"}
    notes = prepare(make_config(split={"source": "folder"}, data=changes)).notes
    assert set(notes) <= set(caplog.messages)
    text = notes[0]
    assert "data.normalization is none, the checkpoint's is zscore_roi" in text
    assert "stride 3, the checkpoint's is stride 1" in text


def test_clips_unlike_those_of_training_are_said(make_config, files, tmp_path, caplog):
    """Pretraining on this folder, evaluation on one with offsets of every person (method 7)."""
    data, checkpoint = files
    state = torch.load(checkpoint, weights_only=True)
    clips = FMRIDataset(data, "train", ClipInput((12, 16), "none", stride=1))
    state["normalization"] = {"method": "none"}
    state["input_profile"] = InputProfile.from_dataset(clips).to_dict()
    torch.save(state, tmp_path / "profiled.pth.tar")
    other = shutil.copytree(data, tmp_path / "other")
    series = np.load(other / "timeseries.npy")
    folder = DataFolder(other)
    for row, person in enumerate(folder.runs["participant_id"]):
        start = folder.offsets[row]
        series[start : start + 12 * folder.frames[row]] += 100 * int(person[1:])
    np.save(other / "timeseries.npy", series)

    model = {"load_path": str(tmp_path / "profiled.pth.tar")}
    prepare(make_config(model=model))
    assert "unlike" not in caplog.text
    prepare(make_config(model=model, data={"data_path": str(other)}))
    assert f"clips of {other} are unlike those that {model['load_path']} was trained on" in (
        caplog.text
    )
    assert "offsets between runs are 100 % of an ROI's variance" in caplog.text


def test_a_metric_of_two_classes_with_three_in_the_data(make_config, tmp_path, files):
    data = labelled_folder(tmp_path / "data")
    table = (data / "participants.tsv").read_text().replace("\tM\t", "\tX\t", 9)
    (data / "participants.tsv").write_text(table)
    config = make_config(data={"data_path": str(data)}, evaluation={"metric": "f1"})
    with pytest.raises(UserError, match=r"evaluation\.metric is f1, which 3 classes \(F, M, X\)"):
        prepare(config)
