"""Whatever the kind of a checkpoint file, reading it gives the same dataclass."""

from pathlib import Path

import pytest
import torch

from downstream_tasks import main_finetune
from downstream_tasks.finetune_state import BEST
from src.pretrained.file_kinds import CheckpointContents, read_fine_tuned_release
from src.pretrained.hub import BrainJEPAHub
from src.pretrained.load import load_pretrained, read_checkpoint
from src.utils.checkpoint import load_checkpoint
from tests.downstream_tasks.conftest import CPU, Rehearsal, reference


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A file of each kind; the last three are made from the first."""
    folder = tmp_path_factory.mktemp("kinds")
    rehearsal = Rehearsal(folder)
    found = {"pretraining": rehearsal.checkpoint}
    found["release"] = reference("tiny_mapping", folder)[0]
    found["fine_tuned_release"] = reference("tiny_finetuned", folder)[0]
    config = rehearsal.task(folder / "out", fine_tune={"epochs": 1, "batch_size": 8})
    main_finetune.run(config, [CPU])
    (found["fine_tuned"],) = config.output_dir.rglob(BEST)
    found["export"] = folder / "export"
    BrainJEPAHub.from_encoder(load_pretrained(found["fine_tuned"])).save_pretrained(found["export"])
    return found


def read(path: Path) -> CheckpointContents:
    return read_checkpoint(path, "target_encoder")


def test_the_kind_is_recognised(files):
    assert {kind: read(path).kind for kind, path in files.items()} == {k: k for k in files}


def test_what_pretraining_knew_is_in_all_that_is_made_from_it(files):
    known = read(files["pretraining"])
    assert known.training_people.dtype == torch.int64  # hashes; the file itself lists ids
    for kind in ("fine_tuned", "export"):
        made = read(files[kind])
        assert made.spec == known.spec, kind
        assert (made.roi_labels, made.atlas) == (known.roi_labels, known.atlas), kind
        assert torch.equal(made.training_people, known.training_people), kind
        assert made.clip_input.sampling == known.clip_input.sampling, kind
        # The input is that of the fine-tuning: the task's own.
        assert made.clip_input.normalization == "none", kind
        assert known.clip_input.normalization == "robust_frames"
        assert made.input_profile is not None, kind
        assert set(made.head) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
        assert made.task["name"] == "groups"
    # An export names no one.
    assert read(files["fine_tuned"]).split.keys() == {"train", "valid", "test"}
    assert read(files["export"]).split is None


def test_of_the_release_only_weights_and_a_command_line_are_known(files):
    contents = read(files["release"])
    assert "num_heads" not in contents.spec
    assert contents.clip_input.normalization is contents.clip_input.sampling is None
    assert contents.roi_labels is contents.atlas is contents.training_people is None
    assert contents.n_components == 6
    size = {"embed_dim": 24, "depth": 2, "signal_head": False}
    assert contents.predictor_size == size
    assert read(files["pretraining"]).predictor_size == size | {"embed_dim": 16, "depth": 1}
    state = load_checkpoint(files["fine_tuned_release"])
    state["args"].use_normalization, state["args"].downsample = True, True
    state["args"].model_name = "vit_base"
    contents = read_fine_tuned_release(state, files["fine_tuned_release"])
    assert contents.spec["num_heads"] == 12
    assert contents.clip_input.normalization == "zscore_sample"
    assert contents.clip_input.sampling == {"stride": 3}
