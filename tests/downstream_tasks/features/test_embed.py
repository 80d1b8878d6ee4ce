"""Embeddings to a file: equal to the encoder's output, in constant memory, with who is who."""

import argparse
import weakref
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from downstream_tasks.features import embed
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


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("level", ["pooled", "roi", "token"])
def test_levels(run, tokens, tmp_path, suffix, level):
    out = embed_to(tmp_path / f"e{suffix}", run, "--level", level, "--clips", "2")
    grid = tokens.unflatten(1, (ROIS, PATCHES))
    expected = {"pooled": tokens.mean(1), "roi": grid.mean(2), "token": tokens}[level].numpy()
    if suffix == ".npz":
        with np.load(out) as file:
            values, keys = file["embeddings"], {name: file[name] for name in file.files}
        assert len(keys["roi_labels"]) == ROIS
    else:
        table = pq.read_table(out)
        shape = [int(n) for n in table.schema.metadata[b"shape"].split()]
        values = table["embedding"].combine_chunks().values.to_numpy().reshape(-1, *shape)
        keys = {name: table[name].to_numpy() for name in embed.KEY_COLUMNS}
        assert table.schema.metadata[b"level"].decode() == level
    np.testing.assert_allclose(values, expected, atol=1e-5)
    assert keys["clip"].tolist() == [0, 1] * 12
    assert len(set(keys["participant_id"])) == 12
    assert (keys["participant_id"][::2] == keys["participant_id"][1::2]).all()
    assert sorted(set(keys["split"])) == ["test", "train", "valid"]


def test_npz_opens_as_a_map(run, tmp_path):
    out = embed_to(tmp_path / "e.npz", run, "--level", "roi")
    values, others = embed.open_embeddings(out)
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
    embed_to(tmp_path / "e.parquet", run, "--level", "token", "--batch_size", "2")
    assert len(seen) == 12


def test_parquet_has_a_row_group_for_each_batch(run, tmp_path):
    out = embed_to(tmp_path / "e.parquet", run)
    assert pq.ParquetFile(out).num_row_groups == 3


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
    with pytest.raises(UserError, match=r"\.npz or \.parquet"):
        embed_to(tmp_path / "e.csv", run)
    with pytest.raises(UserError, match="has 12 ROIs"):
        embed_to(tmp_path / "e.npz", (make_folder(), run[1]))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="holds no embeddings"):
        embed.open_embeddings(tmp_path / "other.npz")


def test_a_release_checkpoint_does_not_say_its_input(tmp_path):
    path, _, flags = reference("tiny_mapping", tmp_path)
    pretrained = load_pretrained(path, **flags)
    with pytest.raises(UserError, match="--normalization and --stride or --target_tr"):
        embed.check_known(pretrained.clip_input, path)
    half = pretrained.clip_input.changed(normalization="zscore_sample")
    with pytest.raises(UserError, match=r"Give --stride or --target_tr \("):
        embed.check_known(half, path)
    embed.check_known(half.changed(target_tr=2.0), path)
