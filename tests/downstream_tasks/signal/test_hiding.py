"""What is hidden, what is said of ROIs, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch

from downstream_tasks import main_signal
from downstream_tasks.main_signal import choose_hidings
from downstream_tasks.signal.atlas import _side, hemispheres, network_names
from downstream_tasks.signal.hiding import (
    forecast_hiding,
    network_hidings,
    random_hidings,
)
from src.datasets.folder import DataFolder
from src.pretrained.load import load_pretrained
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import reference
from tests.downstream_tasks.signal.conftest import ROIS, make_task, signal_task

GRID, SIZE = (6, 3), 4


def test_tokens_are_those_of_the_hidden_values():
    for hiding in (*random_hidings(GRID, SIZE, 0.5, 2, 0), *forecast_hiding(GRID, SIZE, 8)):
        clips = torch.arange(6 * 12.0).reshape(1, 6, 12)
        tokens = clips.reshape(18, 4)  # ROI-major, as patches of 4 frames
        hidden = hiding.take_hidden(clips).reshape(-1, 4)
        assert torch.equal(tokens[hiding.hidden_tokens], hidden)
        assert sorted([*hiding.hidden_tokens, *hiding.visible_tokens]) == list(range(18))
        shown = hiding.show(clips)
        assert torch.equal(hiding.fill(shown, hiding.take_hidden(clips)), clips)
        assert shown.isnan().sum() == hidden.numel()


def test_a_draw_is_its_seeds_and_hides_the_fraction():
    one, same, other = (random_hidings(GRID, SIZE, 0.34, 3, seed) for seed in (0, 0, 1))
    assert all(len(h.rois) == 2 for h in one)
    assert all(np.array_equal(a.rois, b.rois) for a, b in zip(one, same, strict=True))
    assert any(not np.array_equal(a.rois, b.rois) for a, b in zip(one, other, strict=True))


def test_networks_are_hidden_whole():
    names = ["a", "b", "c", "a", "b", "c"]
    for hiding in network_hidings(GRID, SIZE, names, 0.5, 4, 0):
        hidden = {names[r] for r in hiding.rois}
        assert len(hidden) == 2
        assert all((n in hidden) == (r in hiding.rois) for r, n in enumerate(names))


@pytest.mark.parametrize(
    ("label", "side"),
    [
        *(("7Networks_LH_Vis_1", "left"), ("R_CERCR2_p", "right"), ("Precentral_L", "left")),
        *(("HIP-rh", "right"), ("CER7b_l", None), ("MOTnet_l", None), ("ACcor_d", None)),
    ],
)
def test_sides_of_labels(label, side):
    assert _side(label) == side


def test_hemispheres_and_networks_of_a_folder(two_networks_files, tmp_path):
    data, checkpoint = two_networks_files
    config = signal_task(
        data, checkpoint, tmp_path, protocol="imputation", signal={"hidden": "hemisphere"}
    )
    pretrained, folder = load_pretrained(checkpoint, with_predictor=True), DataFolder(data)
    hidings = choose_hidings(config, pretrained, folder)
    assert [h.rois.tolist() for h in hidings] == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    assert network_names(folder) == ["a"] * 6 + ["b"] * 6
    config = signal_task(
        data, checkpoint, tmp_path, protocol="imputation", signal={"hidden": "networks"}
    )
    assert {len(h.rois) for h in choose_hidings(config, pretrained, folder)} == {6}


def test_where_nothing_is_known_of_the_rois_both_are_refused(two_networks_files, tmp_path):
    data, checkpoint = two_networks_files
    shutil.copytree(data, tmp_path / "data")
    description = json.loads((data / "dataset.json").read_text())
    description["roi_labels"] = [f"roi{r}" for r in range(ROIS)]
    table = tmp_path / "data" / "participants.tsv"
    table.write_text(table.read_text().replace("7Networks_RH_a_3", "roi3"))
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(description))
    folder = DataFolder(tmp_path / "data")
    pretrained = load_pretrained(checkpoint, with_predictor=True)
    assert network_names(folder) is None
    with pytest.raises(UserError, match=r"holds no centroids.csv.*--centroids_from"):
        hemispheres(folder, pretrained)
    config = signal_task(
        data, checkpoint, tmp_path, protocol="imputation", signal={"hidden": "networks"}
    )
    with pytest.raises(UserError, match="name none"):
        choose_hidings(config, pretrained, folder)
    (tmp_path / "data" / "dataset.json").write_text(
        json.dumps(description | {"networks": ["x", "y"] * (ROIS // 2)})
    )
    assert network_names(DataFolder(tmp_path / "data")) == ["x", "y"] * (ROIS // 2)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"signal": {"frames": 3}}, "signal.frames is 3; .* a multiple of 4 below 16"),
        ({"signal": {"frames": 16}}, "signal.frames is 16"),
        ({"data": {"gradient_csv_path": None}}, "holds no gradients.*prepare.gradients"),
        (
            {"protocol": "imputation", "signal": {"fraction": 0.01}},
            "signal.fraction is 0.01: of 12 ROIs 0",
        ),
    ],
)
def test_what_a_checkpoint_cannot_be_asked_is_refused_before_it_runs(
    sections, message, two_networks_files, tmp_path
):
    config = signal_task(*two_networks_files, tmp_path, **sections)
    with pytest.raises(UserError, match=message):
        main_signal.run(config, torch.device("cpu"))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"signal": {"baselines": ["var", "ridge"]}}, "signal.baselines.*names of mean"),
        ({"signal": {"baselines": ["ar"], "stack": ["var"]}}, "signal.stack.*names of ar"),
        ({"signal": {"stack": ["mean"]}}, "signal.stack"),
        ({"signal": {"hidden": "networks"}}, "signal.hidden.*unset with protocol forecast"),
        ({"protocol": "imputation", "signal": {"frames": 4}}, "signal.frames.*unset"),
        ({"data": {"short_runs": "pad"}}, "data.short_runs.*zeros at the end"),
    ],
)
def test_a_task_file_that_contradicts_itself_is_refused(sections, message, tmp_path):
    with pytest.raises(UserError, match=message):
        signal_task(tmp_path, tmp_path, tmp_path, **sections)


def test_a_file_without_predictor_is_refused(two_networks_files, tmp_path):
    path, _, flags = reference("tiny_finetuned", tmp_path)
    config = signal_task(
        two_networks_files[0],
        path,
        tmp_path,
        data={"gradient_csv_path": str(flags["gradient_csv_path"])},
        model={"num_heads": flags["num_heads"]},
    )
    with pytest.raises(UserError, match="holds no predictor"):
        main_signal.run(config, torch.device("cpu"))


def test_noise_is_in_what_is_seen_and_not_in_what_is_asked(two_networks_files):
    task, test = make_task(*two_networks_files, "forecast", signal={"noise": 0.5})
    _, clean = make_task(*two_networks_files, "forecast")
    for batch, same, without in zip(test.clips, test.clips, clean.clips, strict=True):
        assert torch.equal(batch.hidden, without.hidden)
        assert torch.equal(batch.shown.nan_to_num(), same.shown.nan_to_num())
        noise = (batch.shown - without.shown)[~batch.shown.isnan()]
        assert 0.4 < noise.std() < 0.6
        torch.testing.assert_close(batch.whole, without.whole)
        torch.testing.assert_close(batch.whole_seen, batch.whole + batch.noise)
    assert len(task.train)


def test_noise_is_alike_in_training_and_test_whatever_the_batches(two_networks_files):
    sections = {"signal": {"noise": 0.5}}
    found = []
    for batch_size in (1, 64):
        task, test = make_task(
            *two_networks_files,
            "imputation",
            evaluation={"encoder_batch_size": batch_size},
            **sections,
        )
        noise = {
            part: torch.cat([batch.noise for batch in clips])
            for part, clips in (("train", task.train), ("valid", task.valid), ("test", test.clips))
        }
        found.append(noise)
        for of_part in noise.values():
            assert 0.47 < of_part.std() < 0.53
        every = torch.cat([of_part.flatten(1) for of_part in noise.values()])
        alike = torch.corrcoef(every) - torch.eye(len(every))
        assert alike.abs().max() < 0.5  # no clip has the noise of another one
    for part, of_part in found[0].items():
        assert torch.equal(of_part, found[1][part])
