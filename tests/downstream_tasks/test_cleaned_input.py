"""``clip_sd`` and ``global_signal`` of a pretraining reach all that is made with its checkpoint."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from downstream_tasks.cohort.clips import ExampleClips, task_clip_input
from downstream_tasks.cohort.examples import load_cohort
from downstream_tasks.config import DataConfig
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.features import embed
from downstream_tasks.features.series import ExampleSeries
from downstream_tasks.finetune_state import _identity
from downstream_tasks.notes import _input_note
from src.datasets.clip_input import ClipInput
from src.datasets.fmri import FMRIDataset
from src.datasets.folder import DataFolder
from src.datasets.input_profile import InputProfile
from src.pretrain_state import PretrainState
from src.pretrained.encoder import Pretrained
from src.pretrained.hub import BrainJEPAHub
from src.pretrained.load import load_pretrained
from src.utils.errors import UserError
from tests.conftest import FRAMES, ROIS, read_latest, tiny_config, train_here
from tests.downstream_tasks.conftest import pretraining_run

CLEANING = {"clip_sd": 0.5, "global_signal": "remove"}
KEYS = ("data.clip_sd=0.5", "data.global_signal=remove")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    return pretraining_run(tmp_path_factory.mktemp("cleaned"), *KEYS)


@pytest.fixture(scope="module")
def pretrained(run) -> Pretrained:
    return load_pretrained(run[1])


@pytest.fixture(scope="module")
def clips(run) -> torch.Tensor:
    """Centre clips ``[12, 1, R, T]``, cleaned here by hand from those that are only normalised."""
    plain = ClipInput((ROIS, FRAMES), "robust_frames", stride=1)
    dataset = FMRIDataset(run[0], ["train", "valid", "test"], plain, clips="center")
    values = torch.stack([dataset[i]["fmri"] for i in range(len(dataset))]).clamp(-0.5, 0.5)
    return values - values.mean(dim=2, keepdim=True)


def test_the_checkpoint_states_them_beside_the_statistics(run, pretrained):
    state = PretrainState.load(run[1] / "jepa-latest.pth.tar")
    assert state.stats.keys() == {"median", "iqr"}
    assert {name: state.normalization[name] for name in CLEANING} == CLEANING
    assert pretrained.clip_input.cleaning == CLEANING
    assert "robust_frames, clamped to +-0.5, global signal removed" in log_of(run[1])


def log_of(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def test_the_profile_is_of_the_clips_that_enter_the_encoder(run, pretrained):
    dataset = FMRIDataset(run[0], "train", pretrained.clip_input)
    profile = pretrained.input_profile
    assert profile == InputProfile.from_dataset(dataset)
    assert np.max(profile.sd) < 0.5
    assert abs(np.mean(profile.mean)) < 1e-6
    assert pretrained.clip_note(dataset) is None


def test_a_run_goes_on_with_them_only(run, tmp_path):
    folder = shutil.copytree(run[1], tmp_path / "run")
    train_here(tiny_config(run[0], folder, *KEYS), resume=True)
    for key in ("data.clip_sd=0.6", "data.global_signal=keep"):
        with pytest.raises(UserError, match=key.split("=")[0]):
            train_here(tiny_config(run[0], folder, *KEYS, key), resume=True)


def test_a_run_from_before_the_keys_goes_on_at_their_defaults(data, tmp_path):
    folder = tmp_path / "run"
    train_here(tiny_config(data, folder))
    state = read_latest(folder)
    for name in CLEANING:
        del state["config"]["data"][name], state["normalization"][name]
    torch.save(state, folder / "jepa-latest.pth.tar")
    train_here(tiny_config(data, folder), resume=True)
    assert load_pretrained(folder).clip_input.cleaning == ClipInput((1, 1)).cleaning
    with pytest.raises(UserError, match=r"data\.global_signal is 'remove', was 'keep'"):
        train_here(tiny_config(data, folder, "data.global_signal=remove"), resume=True)


def test_a_fine_tuning_from_before_the_keys_goes_on_at_their_defaults():
    config = task_from_dict({"data": {"data_path": "x", "target": "y"}}, "test").to_dict()
    about = {"config": config, "task": {"metric": "auroc"}, "effective_batch": 8}
    older = about | {"config": config | {"data": dict(config["data"])}}
    for name in CLEANING:
        del older["config"]["data"][name]
    assert _identity(older) == _identity(about)


def test_embeddings(run, pretrained, clips, tmp_path):
    with torch.inference_mode():
        expected = pretrained.encoder(clips).mean(dim=1).numpy()
    np.testing.assert_allclose(embedded(run, tmp_path / "a.npz"), expected, atol=1e-5)
    plain = embedded(run, tmp_path / "b.npz", "--clip_sd", "none", "--global_signal", "keep")
    assert np.abs(plain - expected).max() > 1e-2
    with pytest.raises(UserError, match="clip_sd is -1"):
        embedded(run, tmp_path / "c.npz", "--clip_sd", "-1")


def embedded(run: tuple[Path, Path], out: Path, *flags: str) -> np.ndarray:
    parser = embed.argparse.ArgumentParser()
    embed.add_arguments(parser)
    named = ["--load_path", str(run[1]), "--data_path", str(run[0]), "--out", str(out)]
    embed.run(parser.parse_args([*named, "--device", "cpu", *flags]))
    with np.load(out) as file:
        return file["embeddings"]


def test_an_exported_model_prepares_clips_in_the_same_way(run, pretrained, clips, tmp_path):
    BrainJEPAHub.from_encoder(pretrained).save_pretrained(tmp_path / "model")
    model = BrainJEPAHub.from_pretrained(tmp_path / "model")
    assert model.clip_input.cleaning == CLEANING
    assert load_pretrained(tmp_path / "model").clip_input.cleaning == CLEANING
    folder = DataFolder(run[0])
    prepared = model.prepare(folder.series(0), tr=2.0)
    torch.testing.assert_close(prepared, clips[0])
    plain = model.prepare(folder.series(0), tr=2.0, clip_sd=None, global_signal="keep")
    assert plain.abs().max() > 0.5


# --- evaluation ----------------------------------------------------------------------------------


@pytest.fixture
def read(run, pretrained):
    """A function of keys of the data section: (clip, stored series) of the first person."""

    def read(**keys):
        data = DataConfig(data_path=str(run[0]), target="participant_id", stride=1, **keys)
        clip_input = task_clip_input(data, pretrained)
        patch_size = pretrained.encoder_spec.patch_size
        cohort = load_cohort(DataFolder(run[0]), data, clip_input, patch_size)
        clips = ExampleClips(cohort, data, pretrained)
        series = ExampleSeries(cohort, data, pretrained, clips, "clips")
        return torch.from_numpy(series.of(0, "clip")[0]), series.of(0, "run")[0], clips.identity()

    return read


def test_tasks_clean_as_the_pretraining_did_unless_they_say_otherwise(run, clips, read):
    clip, stored, identity = read()
    torch.testing.assert_close(clip, clips[0, 0])
    plain, same, other = read(clip_sd=None, global_signal="keep")
    assert plain.abs().max() > 0.5
    assert identity != other  # features of one are not found for the other
    # What is read as stored stays so.
    folder = DataFolder(run[0])
    start = (folder.frames[0] - FRAMES) // 2
    for series in (stored, same):
        np.testing.assert_array_equal(series, folder.series(0)[:, start : start + FRAMES])


def test_an_input_unlike_that_of_the_pretraining_is_pointed_out(run, pretrained):
    values = {"data": {"data_path": str(run[0]), "target": "x"}}
    assert _input_note(task_from_dict(values, "test"), pretrained) is None
    values["data"] |= {"clip_sd": None, "global_signal": "keep"}
    note = _input_note(task_from_dict(values, "test"), pretrained)
    assert "data.clip_sd is none, the checkpoint's is 0.5" in note
    assert "data.global_signal is keep, the checkpoint's is remove" in note


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"clip_sd": "chekpoint"}, "Did you mean 'checkpoint'"),
        ({"clip_sd": 0}, "data.clip_sd is 0; allowed"),
        ({"global_signal": "removed"}, "Did you mean 'remove'"),
    ],
)
def test_mistakes_in_a_task(keys, said):
    with pytest.raises(UserError, match=said):
        task_from_dict({"data": {"data_path": "x", "target": "y"} | keys}, "test")


def test_provenance_of_files_made_from_it(pretrained):
    again = ClipInput.from_state((ROIS, FRAMES), pretrained.provenance())
    assert again.cleaning == CLEANING
    assert dataclasses.replace(again, stats=None).normalization == "robust_frames"
