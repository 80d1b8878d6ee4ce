"""Embeddings to a file: equal to the encoder's output, in constant memory, with who is who."""

import argparse
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from downstream_tasks.features import embed, embedding_files
from downstream_tasks.features.embedding_files import KEY_COLUMNS, open_embeddings
from src.datasets.fmri import FMRIDataset
from src.pretrained.load import load_pretrained
from src.utils.errors import UserError
from tests.conftest import FRAMES, ROIS
from tests.downstream_tasks.conftest import pretraining_run, reference

PATCHES, WIDTH = FRAMES // 16, 24


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    return pretraining_run(tmp_path_factory.mktemp("embed"))


def embed_to(out: Path, run: tuple[Path, Path], *flags: str) -> Path:
    parser = argparse.ArgumentParser()
    embed.add_arguments(parser)
    data, folder = run
    own = ["--load_path", str(folder), "--data_path", str(data), "--out", str(out)]
    return embed.run(parser.parse_args([*own, "--device", "cpu", "--batch_size", "5", *flags]))


@pytest.fixture(scope="module")
def tokens(run) -> torch.Tensor:
    """Two clips of every run, as the checkpoint expects them: ``[24, N, D]``."""
    data, folder = run
    pretrained = load_pretrained(folder)
    dataset = FMRIDataset(data, ("train", "valid", "test"), pretrained.clip_input, clips=2)
    clips = torch.stack([dataset[i]["fmri"] for i in range(len(dataset))])
    with torch.no_grad():
        return pretrained.encoder(clips)


def expected_at(level: str, tokens: torch.Tensor) -> np.ndarray:
    grid = tokens.unflatten(1, (ROIS, PATCHES))
    return {"pooled": tokens.mean(1), "roi": grid.mean(2), "token": tokens}[level].numpy()


def check_keys(keys: Mapping[str, np.ndarray]) -> None:
    assert list(keys["clip"]) == [0, 1] * 12
    people = np.asarray(keys["participant_id"])
    assert len(set(people)) == 12
    assert (people[::2] == people[1::2]).all()
    assert sorted(set(keys["split"])) == ["test", "train", "valid"]
    assert set(keys["session"]) == set(keys["run"]) == {"01"}


@pytest.mark.parametrize("level", ["pooled", "roi", "token"])
def test_arrays(run, tokens, tmp_path, level):
    out = embed_to(tmp_path / "e.npz", run, "--level", level, "--clips", "2")
    with np.load(out) as file:
        np.testing.assert_allclose(file["embeddings"], expected_at(level, tokens), atol=1e-5)
        assert len(file["roi_labels"]) == ROIS
        check_keys({name: file[name] for name in KEY_COLUMNS})


TEXT = {"session": str, "run": str}
READERS = {
    ".parquet": pd.read_parquet,
    ".csv": partial(pd.read_csv, dtype=TEXT),
    ".tsv": partial(pd.read_csv, dtype=TEXT, sep="\t"),
}


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("level", ["pooled", "roi"])
def test_tables_have_a_column_for_each_feature(run, tokens, tmp_path, suffix, level):
    table = READERS[suffix](
        embed_to(tmp_path / f"e{suffix}", run, "--level", level, "--clips", "2")
    )
    assert tuple(table.columns[:5]) == KEY_COLUMNS
    features = table[table.columns[5:]]
    values = expected_at(level, tokens).reshape(24, -1)
    np.testing.assert_allclose(features.to_numpy(), values, atol=1e-5)
    labels = load_pretrained(run[1]).roi_labels
    names = {
        "pooled": [f"f{i:04d}" for i in range(WIDTH)],
        "roi": [f"{label}_f{i:03d}" for label in labels for i in range(WIDTH)],
    }
    assert features.columns.tolist() == names[level]
    check_keys(table)


def test_text_holds_every_digit(run, tmp_path):
    csv = pd.read_csv(embed_to(tmp_path / "e.csv", run), dtype={"f0000": np.float32})
    with np.load(embed_to(tmp_path / "e.npz", run)) as file:
        np.testing.assert_array_equal(csv["f0000"], file["embeddings"][:, 0])


def test_connectivity_is_named_by_its_two_rois(run, tmp_path):
    table = pd.read_parquet(embed_to(tmp_path / "e.parquet", run, "--level", "connectivity"))
    labels = load_pretrained(run[1]).roi_labels
    assert len(table.columns) == 5 + ROIS * (ROIS - 1) // 2
    assert table.columns[5] == f"{labels[0]}--{labels[1]}"
    assert table.columns[-1] == f"{labels[-2]}--{labels[-1]}"


def test_what_no_table_can_hold(run, tmp_path, monkeypatch):
    for suffix in READERS:
        with pytest.raises(UserError, match=r"token has \d+ values a clip.*\.npz"):
            embed_to(tmp_path / f"e{suffix}", run, "--level", "token")
    monkeypatch.setattr(embedding_files, "MOST_PARQUET_COLUMNS", 100)
    with pytest.raises(UserError, match=r"roi would be \d+ columns"):
        embed_to(tmp_path / "e.parquet", run, "--level", "roi")
    assert not list(tmp_path.iterdir())


def test_npz_opens_as_a_map(run, tmp_path):
    out = embed_to(tmp_path / "e.npz", run, "--level", "roi")
    values, others = open_embeddings(out)
    assert isinstance(values, np.memmap)
    assert values.shape == (12, ROIS, WIDTH)
    with np.load(out) as file:
        np.testing.assert_array_equal(values, file["embeddings"])
        np.testing.assert_array_equal(others["participant_id"], file["participant_id"])


def test_batches_are_written_as_they_come(run, tmp_path, monkeypatch):
    """No more than one batch exists at a time: each is dead before the next is made."""
    seen: list[weakref.ref] = []
    real = embed.embed

    def watched(*args, **kwargs):
        for batch in real(*args, **kwargs):
            assert all(ref() is None for ref in seen[:-1])
            seen.append(weakref.ref(batch))
            yield batch

    monkeypatch.setattr(embed, "embed", watched)
    embed_to(tmp_path / "e.npz", run, "--level", "token", "--batch_size", "2")
    embed_to(tmp_path / "e.parquet", run, "--level", "roi", "--batch_size", "2")
    embed_to(tmp_path / "e.csv", run, "--level", "roi", "--batch_size", "2")
    assert len(seen) == 18


@pytest.mark.parametrize("rows", [1, 4, 5, 7, 24])
def test_parquet_holds_few_rows_at_a_time(run, tmp_path, monkeypatch, rows):
    whole = pd.read_parquet(embed_to(tmp_path / "a.parquet", run))
    monkeypatch.setattr(embedding_files, "_ROW_GROUP_VALUES", rows * WIDTH)
    out = embed_to(tmp_path / "b.parquet", run)
    assert pq.ParquetFile(out).num_row_groups == -(-12 // rows)
    pd.testing.assert_frame_equal(pd.read_parquet(out), whole)


def test_one_split(run, tmp_path):
    out = embed_to(tmp_path / "e.npz", run, "--split", "test")
    with np.load(out) as file:
        assert file["embeddings"].shape == (2, WIDTH)
        assert set(file["split"]) == {"test"}


def test_workers_change_nothing(run, tmp_path):
    alone = embed_to(tmp_path / "a.npz", run)
    together = embed_to(tmp_path / "b.npz", run, "--num_workers", "2")
    with np.load(alone) as a, np.load(together) as b:
        np.testing.assert_array_equal(a["embeddings"], b["embeddings"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--clips", "0"], "--clips is 0"),
        (["--stride", "2", "--target_tr", "4.0"], "not both"),
        (["--patch_size", "8"], "patch_size is 8"),
        (["--crop_size", "26,80"], r"crop_size is \(26, 80\)"),
    ],
)
def test_bad_flags(run, tmp_path, flags, said):
    with pytest.raises(UserError, match=said):
        embed_to(tmp_path / "e.npz", run, *flags)
    assert not list(tmp_path.iterdir())


def test_bad_files(run, tmp_path, make_folder):
    with pytest.raises(UserError, match=r"must end in \.npz, \.parquet, \.csv, \.tsv"):
        embed_to(tmp_path / "e.txt", run)
    with pytest.raises(UserError, match="has 12 ROIs"):
        embed_to(tmp_path / "e.npz", (make_folder(), run[1]))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="holds no embeddings"):
        open_embeddings(tmp_path / "other.npz")


def test_a_release_checkpoint_does_not_say_its_input(tmp_path):
    path, _, flags = reference("tiny_mapping", tmp_path)
    pretrained = load_pretrained(path, **flags)
    with pytest.raises(UserError, match="--normalization and --stride or --target_tr"):
        embed.check_known(pretrained.clip_input, path)
    half = pretrained.clip_input.changed(normalization="zscore_sample")
    with pytest.raises(UserError, match=r"Give --stride or --target_tr \("):
        embed.check_known(half, path)
    embed.check_known(half.changed(target_tr=2.0), path)
