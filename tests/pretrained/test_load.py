"""Any checkpoint becomes an encoder with all it knows, and a contradiction becomes an error."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from src.datasets.folder import DataFolder
from src.datasets.prepare.synthetic import write_synthetic
from src.models.encoder_spec import EncoderSpec
from src.pretrained.encoder import Pretrained
from src.pretrained.load import find_checkpoint, load_pretrained
from src.utils.checkpoint import load_checkpoint, network_state
from src.utils.errors import UserError
from tests.conftest import COMPONENTS, FRAMES, ROIS
from tests.downstream_tasks.conftest import pretraining_run, reference


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    return pretraining_run(tmp_path_factory.mktemp("pretrained"), "data.stride=1")


def test_our_checkpoint_needs_no_flags(run, tmp_path):
    data, folder = run
    (latest,) = folder.glob("*-latest.pth.tar")
    # Alone: without the run's configuration beside it, which names the file of gradients.
    pretrained = load_pretrained(shutil.copy(latest, tmp_path))
    spec = pretrained.encoder_spec
    assert pretrained.kind == "pretraining"
    assert spec.crop_size == (ROIS, FRAMES)
    assert (spec.patch_size, spec.embed_dim, spec.depth, spec.num_heads) == (16, 24, 2, 2)
    assert pretrained.gradients.shape == (ROIS, COMPONENTS)
    assert pretrained.clip_input.normalization == "robust_frames"
    assert set(pretrained.clip_input.stats) == {"median", "iqr"}
    assert pretrained.clip_input.sampling == {"stride": 1}
    assert pretrained.roi_labels == DataFolder(data).roi_labels
    assert not pretrained.encoder.training
    assert not any(p.requires_grad for p in pretrained.encoder.parameters())


def test_networks_of_a_checkpoint_differ(run):
    x = torch.randn(1, 1, ROIS, FRAMES, generator=torch.Generator().manual_seed(0))
    outputs = [load_pretrained(run[1], which=w).encoder(x) for w in ("target_encoder", "encoder")]
    assert not torch.allclose(*outputs)
    assert torch.equal(load_pretrained(run[1]).encoder(x), outputs[0])  # unless asked otherwise


def test_copies(run):
    pretrained = load_pretrained(run[1])
    x = torch.randn(1, 1, ROIS, FRAMES, generator=torch.Generator().manual_seed(0))
    copy = pretrained.trainable_copy(drop_path_rate=0.5)
    assert all(p.requires_grad for p in copy.parameters())
    assert torch.equal(copy.eval()(x), pretrained.encoder(x))
    same, again, other = (pretrained.untrained(seed)(x) for seed in (3, 3, 4))
    assert torch.equal(same, again)
    assert not torch.allclose(same, other)
    assert not torch.allclose(same, pretrained.encoder(x))


@pytest.mark.parametrize("name", ["tiny_mapping", "tiny_origin"])
@pytest.mark.parametrize("which", ["encoder", "target_encoder"])
def test_release_checkpoint(name, which, tmp_path):
    path, arrays, flags = reference(name, tmp_path)
    pretrained = load_pretrained(path, which=which, **flags)
    assert pretrained.kind == "release"
    assert pretrained.roi_labels is pretrained.input_profile is None
    assert pretrained.clip_input.normalization is pretrained.clip_input.sampling is None
    assert pretrained.encoder_spec.crop_size == (int(arrays["config"][0]), 160)
    x = torch.from_numpy(arrays["x"])
    output = pretrained.encoder(x)
    if which == "encoder":
        expected = arrays["encoder_out"]
    else:
        output = torch.nn.functional.layer_norm(output, output.shape[-1:])
        index = torch.from_numpy(arrays["masks_pred"])[..., None].expand(-1, -1, output.shape[-1])
        output, expected = output.gather(1, index), arrays["target"]
    assert np.abs(output.numpy() - expected).max() <= 2e-5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"crop_size": (ROIS, FRAMES + 16)}, "crop_size"),
        ({"patch_size": 8}, "patch_size"),
        ({"add_w": "origin"}, "add_w"),
        ({"num_heads": 4}, "num_heads"),
        ({"model_name": "vit_small"}, "embed_dim"),
        ({"model_name": "vit_smal"}, "Did you mean 'vit_small'"),
        ({"load_epoch": 7}, "has 0 checkpoints named"),
        ({"which": "predictor"}, "network"),
    ],
)
def test_a_flag_that_contradicts_the_file(run, flags, said):
    with pytest.raises(UserError, match=said):
        load_pretrained(run[1], **flags)


def test_flags_that_agree_are_fine(run):
    data, folder = run
    load_pretrained(
        folder,
        crop_size=[ROIS, FRAMES],
        patch_size=16,
        add_w="mapping",
        pred_depth=1,
        pred_emb_dim=16,
        gradient_csv_path=data / "gradients.csv",
    )


def test_another_predictor_is_only_noted_for_it_is_not_used(run, caplog):
    with caplog.at_level("INFO"):
        there = load_pretrained(run[1], pred_depth=12, pred_emb_dim=384)
    for said in ("pred_depth is 12, the checkpoint", "pred_emb_dim is 384, the checkpoint"):
        assert said in caplog.text
    assert torch.equal(there.gradients, load_pretrained(run[1]).gradients)


def test_an_epoch_that_the_file_is_not_of(run, tmp_path):
    latest = find_checkpoint(run[1])
    epoch = load_checkpoint(latest)["epoch"]
    load_pretrained(latest, load_epoch=epoch)
    with pytest.raises(UserError, match=f"load_epoch is {epoch - 1}, but .* after epoch {epoch}"):
        load_pretrained(latest, load_epoch=epoch - 1)
    # A name that contradicts what the file holds, and one that contradicts the flag.
    renamed = shutil.copy(latest, tmp_path / f"jepa-ep{epoch + 1}.pth.tar")
    with pytest.raises(UserError, match=f"after epoch {epoch}"):
        load_pretrained(renamed, load_epoch=epoch + 1)
    with pytest.raises(UserError, match="load_path names the epoch"):
        load_pretrained(renamed, load_epoch=epoch)


def test_the_release_counts_its_epochs_otherwise(tmp_path):
    """Its ep300 was written after 299 epochs (method 8.5); without a name the number counts."""
    path, _, flags = reference("tiny_mapping", tmp_path)
    state = load_checkpoint(path) | {"epoch": 299}
    for name in ("jepa-ep300.pth.tar", "jepa-latest.pth.tar"):
        torch.save(state, tmp_path / name)
    assert load_pretrained(tmp_path, load_epoch=300, **flags).kind == "release"
    with pytest.raises(UserError, match=r"load_epoch is 300, but .*latest.* after epoch 299"):
        load_pretrained(tmp_path / "jepa-latest.pth.tar", load_epoch=300, **flags)


def test_gradients_that_the_config_of_the_run_names(tmp_path):
    path, arrays, flags = reference("tiny_mapping", tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(path, run / "jepa-ep300.pth.tar")
    csv = flags.pop("gradient_csv_path")
    with pytest.raises(UserError, match="Give gradient_csv_path"):
        load_pretrained(run, **flags)
    (run / "params-ijepa.yaml").write_text(f"data: {{gradient_csv_path: {csv}}}\n")
    pretrained = load_pretrained(run, **flags)
    np.testing.assert_allclose(pretrained.gradients, arrays["gradient"], rtol=1e-6)
    (run / "params-ijepa.yaml").write_text("data: {gradient_csv_path: path/to/gradients.csv}\n")
    with pytest.raises(UserError, match="Give gradient_csv_path"):
        load_pretrained(run, **flags)


def test_other_gradients_are_refused(run, tmp_path):
    other = tmp_path / "other.csv"
    np.savetxt(other, np.random.default_rng(1).normal(size=(ROIS, COMPONENTS)), delimiter=",")
    with pytest.raises(UserError, match="differs from the gradients"):
        load_pretrained(run[1], gradient_csv_path=other)


def test_only_a_file_of_the_release_may_lack_its_gradients(run, tmp_path):
    data, folder = run
    state = load_checkpoint(find_checkpoint(folder))
    del state["target_encoder"]["module.gradient_pos_embed"]
    torch.save(state, tmp_path / "ours.pth.tar")
    with pytest.raises(UserError, match="gradient_pos_embed is missing"):
        load_pretrained(tmp_path / "ours.pth.tar", gradient_csv_path=data / "gradients.csv")
    path, arrays, flags = reference("tiny_mapping", tmp_path)
    pretrained = load_pretrained(path, **flags)
    np.testing.assert_allclose(pretrained.gradients, arrays["gradient"], rtol=1e-6)
    released = load_checkpoint(path)
    del released["target_encoder"]["module.norm.bias"]
    torch.save(released, tmp_path / "other.pth.tar")
    with pytest.raises(UserError, match=r"norm\.bias is missing"):
        load_pretrained(tmp_path / "other.pth.tar", **flags)


def test_release_checkpoint_without_what_it_needs(tmp_path):
    path, arrays, flags = reference("tiny_mapping", tmp_path)
    with pytest.raises(UserError, match="gradient_csv_path"):
        load_pretrained(path, num_heads=flags["num_heads"])
    with pytest.raises(UserError, match="Give num_heads"):
        load_pretrained(path, gradient_csv_path=flags["gradient_csv_path"])
    narrow = tmp_path / "narrow.csv"
    np.savetxt(narrow, arrays["gradient"][:, :3], delimiter=",")
    with pytest.raises(UserError, match="has 3 columns"):
        load_pretrained(path, num_heads=flags["num_heads"], gradient_csv_path=narrow)


def test_epochs_of_a_run_folder(run, tmp_path):
    folder = run[1]
    assert find_checkpoint(folder).name == "jepa-latest.pth.tar"
    assert find_checkpoint(folder, 2).name == "jepa-ep2.pth.tar"
    with pytest.raises(UserError, match="jepa-ep2"):
        find_checkpoint(folder, 300)
    with pytest.raises(UserError, match="load_epoch is 3"):
        find_checkpoint(folder / "jepa-ep2.pth.tar", 3)
    shutil.copy(folder / "jepa-latest.pth.tar", tmp_path / "a-latest.pth.tar")
    shutil.copy(folder / "jepa-latest.pth.tar", tmp_path / "b-latest.pth.tar")
    with pytest.raises(UserError, match="2 checkpoints"):
        find_checkpoint(tmp_path)


def test_not_an_encoder(tmp_path):
    torch.save({"target_encoder": {"module.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no Brain-JEPA encoder"):
        load_pretrained(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": [1, 2]}, "'model' is a list"),
        ({"args": {"model_name": "vit_base"}}, "'args' is a dict"),
        ({"patch": torch.zeros(8, 1, 16)}, r"patch_embed\.proj\.weight has shape \[8, 1, 16\]"),
    ],
)
def test_files_of_other_programs(tmp_path, changes, said):
    path, _, flags = reference("tiny_finetuned", tmp_path)
    state = dict(load_checkpoint(path))
    if "patch" in changes:
        name = "encoder.patch_embed.proj.weight"
        changes = {"model": {**state["model"], name: changes["patch"]}}
    torch.save(state | changes, tmp_path / "other.pth")
    with pytest.raises(UserError, match=said):
        load_pretrained(tmp_path / "other.pth", **flags)


def test_rois_of_a_folder_are_compared(run, make_folder):
    data, folder = run
    pretrained = load_pretrained(folder)
    pretrained.check_folder(DataFolder(data))
    with pytest.raises(UserError, match="has 12 ROIs"):
        pretrained.check_folder(DataFolder(make_folder()))
    with pytest.raises(UserError, match="ROI 1 is 'roi0'"):
        pretrained.check_folder(DataFolder(make_folder("same_size", n_rois=ROIS)))


@pytest.fixture(scope="module")
def of_450_rois(tmp_path_factory) -> tuple[Path, Pretrained]:
    """A folder in the published order, and an encoder of the release's kind for it."""
    folder = tmp_path_factory.mktemp("published")
    write_synthetic(folder / "data", 4, frames=20)
    spec = EncoderSpec((450, 8), 4, 12, 1, 3, "origin")
    torch.save({"encoder": network_state(spec.build(None))}, folder / "release.pth.tar")
    path = folder / "release.pth.tar"
    return folder / "data", load_pretrained(path, which="encoder", num_heads=3)


def relabelled(data: Path, out: Path, labels: list[str]) -> DataFolder:
    shutil.copytree(data, out)
    description = json.loads((out / "dataset.json").read_text())
    (out / "dataset.json").write_text(json.dumps(description | {"roi_labels": labels}))
    return DataFolder(out)


def test_release_weights_need_the_published_order_of_rois(of_450_rois, tmp_path):
    data, release = of_450_rois
    assert release.kind == "release"
    folder = DataFolder(data)
    assert release.check_folder(folder) is None
    labels = list(folder.roi_labels)
    cortex_first = relabelled(data, tmp_path / "cortex", labels[50:] + labels[:50])
    with pytest.raises(UserError, match=r"ROI 1 is '17Networks_LH_VisCent_1', where a subcortical"):
        release.check_folder(cortex_first)
    numbered = [f"ROI-{i:03d}" for i in range(450)]
    note = release.check_folder(relabelled(data, tmp_path / "numbered", numbered))
    assert note.startswith("ROI order not known")
    assert "50 subcortical ROIs" in note


def test_of_other_atlases_the_order_is_not_known(make_folder, tmp_path):
    path, arrays, flags = reference("tiny_mapping", tmp_path)
    folder = DataFolder(make_folder(n_rois=int(arrays["config"][0])))
    note = load_pretrained(path, **flags).check_folder(folder)
    assert note.startswith("ROI order not known")
    assert str(folder.path) in note
