"""Clips of examples and frozen features: what they are, and when they are computed anew."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from downstream_tasks.cohort.clips import ExampleClips, task_clip_input
from downstream_tasks.cohort.examples import load_cohort
from downstream_tasks.config import DataConfig
from downstream_tasks.features.encode import (
    FeatureStore,
    encode_clips,
    mean_over_clips,
    weights_digest,
)
from src.datasets.clip_input import ClipInput
from src.datasets.folder import DataFolder
from src.pretrained.load import load_pretrained
from tests.downstream_tasks.conftest import labelled_folder, write_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    data = labelled_folder(folder / "data", people=10, runs=2)
    return data, write_checkpoint(folder / "jepa-latest.pth.tar", data)


def cohort_of(config, pretrained):
    """The labelled examples of the folder that ``config`` names."""
    return load_cohort(
        DataFolder(config.data_path),
        config,
        task_clip_input(config, pretrained),
        pretrained.encoder_spec.patch_size,
    )


def setting_of(data, checkpoint):
    """Data configuration, checkpoint and cohort of a small folder."""
    config = DataConfig(data_path=str(data), target="sex")
    pretrained = load_pretrained(checkpoint)
    return config, pretrained, cohort_of(config, pretrained)


@pytest.fixture
def setting(files):
    return setting_of(*files)


def encode(pretrained, clips, folder, level="pooled", **options):
    store = FeatureStore(folder)
    (features,) = encode_clips(
        pretrained.encoder, clips, store, levels=[level], device=CPU, batch_size=4, **options
    )
    return features


def counted(monkeypatch, pretrained):
    """Clips that went through the encoder since."""
    seen = []
    forward = pretrained.encoder.forward
    monkeypatch.setattr(
        pretrained.encoder, "forward", lambda x: seen.extend([0] * len(x)) or forward(x)
    )
    return seen


# --- clips ----------------------------------------------------------------------------------------


def test_clips_are_those_of_the_runs_normalised_as_in_pretraining(setting):
    config, pretrained, cohort = setting
    clips = ExampleClips(cohort, config, pretrained, clips=3)
    assert len(clips) == 60
    np.testing.assert_array_equal(clips.example_of_item[:7], [0, 0, 0, 1, 1, 1, 2])
    item = clips[7]
    assert (item["example"], item["item"]) == (2, 7)
    row = int(cohort.examples["row"].iloc[2])
    raw = DataFolder(config.data_path).series(row)[:, 7:23]  # the middle of starts 0 to 14
    expected = (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True)  # zscore_roi
    np.testing.assert_allclose(item["fmri"][0].numpy(), expected, atol=1e-4)


def test_clips_of_chosen_examples_and_random_starts_by_epoch(setting):
    config, pretrained, cohort = setting
    clips = ExampleClips(cohort, config, pretrained, "random", examples=np.array([5, 3]))
    assert [clips[i]["example"] for i in range(2)] == [5, 3]
    torch.testing.assert_close(clips[1, 4]["fmri"], clips[1, 4]["fmri"])
    starts = {clips[0, epoch]["fmri"][0, 0, 0].item() for epoch in range(8)}
    assert len(starts) > 2


def test_the_input_is_the_tasks_else_that_of_pretraining(setting):
    config, pretrained, _ = setting
    assert task_clip_input(config, pretrained).sampling == {"stride": 1}
    fast = dataclasses.replace(pretrained, clip_input=ClipInput((12, 32), target_tr=2.2))
    for changes, sampling in (
        ({}, {"target_tr": 2.2}),
        ({"downsample": True}, {"stride": 3}),
        ({"downsample": False}, {"stride": 1}),
        ({"downsample": True, "stride": 2}, {"stride": 2}),
        ({"target_tr": 3.0, "downsample": True}, {"target_tr": 3.0}),
    ):
        assert task_clip_input(dataclasses.replace(config, **changes), fast).sampling == sampling
    # What neither says: the paper's z-score per clip, and every frame.
    unknown = dataclasses.replace(pretrained, clip_input=ClipInput((12, 32)))
    config = dataclasses.replace(config, normalization="checkpoint", short_runs="pad")
    completed = task_clip_input(config, unknown)
    assert (completed.normalization, completed.sampling) == ("zscore_sample", {"stride": 1})
    assert completed.short_runs == "pad"


def test_events_have_one_clip_at_their_start(files, tmp_path):
    _, checkpoint = files
    data = labelled_folder(tmp_path / "data", people=2)
    events = {"participant_id": ["p00", "p01"], "session": "01", "run": "01", "onset": [13.0, 15.0]}
    table = pd.DataFrame(events).assign(kind=["a", "b"])
    table.to_csv(data / "events.tsv", sep="\t", index=False)
    config = DataConfig(
        data_path=str(data), target="kind", unit="event", scored_patch=1, normalization="none"
    )
    pretrained = load_pretrained(checkpoint)
    clips = ExampleClips(cohort_of(config, pretrained), config, pretrained, clips=5)
    assert len(clips) == 2
    # (15 + 5) s / 2 s = frame 10, one patch of 4 frames into the clip.
    expected = DataFolder(data).series(1)[:, 6:22]
    np.testing.assert_array_equal(clips[1]["fmri"][0].numpy(), expected)


# --- features -------------------------------------------------------------------------------------


def test_features_are_the_encoders_tokens_pooled(setting, tmp_path):
    config, pretrained, cohort = setting
    clips = ExampleClips(cohort, config, pretrained, clips=2)
    x = torch.stack([clips[i]["fmri"] for i in range(len(clips))])
    with torch.no_grad():
        tokens = pretrained.encoder(x).numpy()  # [40, 48, 24]: 12 ROIs of 4 patches
    pooled = encode(pretrained, clips, tmp_path)
    np.testing.assert_allclose(pooled, tokens.mean(1), atol=1e-5)
    by_roi = encode(pretrained, clips, tmp_path, level="roi")
    np.testing.assert_allclose(by_roi[:, 5], tokens[:, 20:24].mean(1), atol=1e-5)
    every = encode(pretrained, clips, tmp_path, level="token")
    assert every.dtype == np.float16
    np.testing.assert_allclose(every, tokens, atol=5e-3)
    scored = encode(pretrained, clips, tmp_path, patch=2, level="token")
    np.testing.assert_allclose(scored, tokens[:, 2::4], atol=5e-3)
    mean = encode(pretrained, clips, tmp_path, patch=2)
    np.testing.assert_allclose(mean, tokens[:, 2::4].mean(1), atol=1e-5)
    np.testing.assert_allclose(
        mean_over_clips(by_roi, 2)[3], tokens.reshape(20, 2, 12, 4, 24)[3].mean((0, 2)).ravel(),
        atol=1e-5,
    )  # fmt: skip


def test_features_are_computed_once(setting, tmp_path, monkeypatch):
    config, pretrained, cohort = setting
    clips = ExampleClips(cohort, config, pretrained)
    first = np.array(encode(pretrained, clips, tmp_path))
    seen = counted(monkeypatch, pretrained)
    again = encode(pretrained, ExampleClips(cohort, config, pretrained), tmp_path)
    assert not seen
    np.testing.assert_array_equal(first, again)


def test_several_levels_come_from_one_pass(setting, tmp_path, monkeypatch):
    config, pretrained, cohort = setting
    clips = ExampleClips(cohort, config, pretrained)
    alone = {
        level: encode(pretrained, clips, tmp_path / level, level=level)
        for level in ("pooled", "roi", "connectivity")
    }
    encode(pretrained, clips, tmp_path / "all", level="roi")
    seen = counted(monkeypatch, pretrained)
    options = {"levels": list(alone), "device": CPU, "batch_size": 4}
    together = encode_clips(pretrained.encoder, clips, FeatureStore(tmp_path / "all"), **options)
    assert len(seen) == len(clips)  # once, for the two that were not there
    for features, expected in zip(together, alone.values(), strict=True):
        np.testing.assert_array_equal(features, expected)
    again = encode_clips(pretrained.encoder, clips, FeatureStore(tmp_path / "all"), **options)
    assert len(seen) == len(clips)
    np.testing.assert_array_equal(again[2], alone["connectivity"])
    assert isinstance(mean_over_clips(again[2], 1), np.memmap)  # not 16 GB of memory


def test_whatever_features_depend_on_is_in_their_key(setting, tmp_path):
    config, pretrained, cohort = setting
    clips = ExampleClips(cohort, config, pretrained)
    encode(pretrained, clips, tmp_path)
    other_data = dataclasses.replace(config, normalization="zscore_sample")
    encode(pretrained, ExampleClips(cohort, other_data, pretrained), tmp_path)
    strided = dataclasses.replace(config, target_tr=3.0, short_runs="pad")
    encode(pretrained, ExampleClips(cohort, strided, pretrained), tmp_path)
    encode(pretrained, ExampleClips(cohort, config, pretrained, clips=2), tmp_path)
    encode(pretrained, ExampleClips(cohort, config, pretrained, 1, np.arange(5)), tmp_path)
    for control in ("phase_randomised", "held_constant"):
        encode(pretrained, clips, tmp_path, control=control)
    encode(pretrained, clips, tmp_path, patch=1)
    changed = dataclasses.replace(pretrained, encoder=pretrained.untrained(7))
    encode(changed, clips, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == len(list(tmp_path.glob("*.json"))) == 9


def test_features_of_rewritten_data_are_not_found_again(files, tmp_path, monkeypatch):
    _, checkpoint = files
    data = labelled_folder(tmp_path / "data", people=4)
    config, pretrained, cohort = setting_of(data, checkpoint)
    encode(pretrained, ExampleClips(cohort, config, pretrained), tmp_path / "f")
    series = np.load(data / "timeseries.npy")
    np.save(data / "timeseries.npy", series * 2)
    seen = counted(monkeypatch, pretrained)
    encode(pretrained, ExampleClips(cohort, config, pretrained), tmp_path / "f")
    assert len(seen) == 4


@pytest.mark.parametrize(("column", "value"), [("tr", "1.0"), ("bad_rois", "roi3")])
def test_features_of_an_edited_table_are_not_found_again(files, tmp_path, column, value):
    _, checkpoint = files
    data = labelled_folder(tmp_path / "data", people=4)
    config = DataConfig(data_path=str(data), target="sex", stride=1, bad_rois="zero")
    pretrained = load_pretrained(checkpoint)

    def identity():
        return ExampleClips(cohort_of(config, pretrained), config, pretrained).identity()

    before = identity()
    assert identity() == before
    table = pd.read_csv(data / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    table.loc[1, column] = value
    table.to_csv(data / "participants.tsv", sep="\t", index=False)
    assert identity() != before


def test_a_pass_that_was_stopped_leaves_nothing(setting, tmp_path, monkeypatch):
    config, pretrained, cohort = setting

    def fail(x):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained.encoder, "forward", fail)
    with pytest.raises(KeyboardInterrupt):
        encode(pretrained, ExampleClips(cohort, config, pretrained), tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_digest_sees_every_weight_and_the_positions(setting):
    _, pretrained, _ = setting
    digest = weights_digest(pretrained.encoder)
    assert digest == weights_digest(pretrained.encoder)
    other = pretrained.trainable_copy()
    assert weights_digest(other) == digest
    with torch.no_grad():
        other.pos_embed_proj.emb_h[3, 2] += 1e-3
    assert weights_digest(other) != digest


def test_controls_change_what_the_encoder_sees(setting, tmp_path):
    config, pretrained, cohort = setting
    clips = ExampleClips(cohort, config, pretrained)
    plain = encode(pretrained, clips, tmp_path)
    constant = encode(pretrained, clips, tmp_path, control="held_constant")
    # Normalised by ROI every mean is 0, so constant clips are all alike.
    assert np.ptp(constant, axis=0).max() < 1e-4 < np.ptp(plain, axis=0).max()
    permuted = encode(pretrained, clips, tmp_path, control="time_permuted_jointly")
    assert np.abs(permuted - plain).max() > 1e-3
    np.testing.assert_array_equal(
        permuted, encode(pretrained, clips, tmp_path / "again", control="time_permuted_jointly")
    )
