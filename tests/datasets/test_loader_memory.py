"""Memory of a loading process over epochs: what it has read does not stay."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from src.config import config_from_dict
from src.datasets.folder import FolderWriter
from src.datasets.micro_batches import MicroBatchSampler, NumberedSamples
from src.helper import init_collator, init_dataset

ROIS, FRAMES, PEOPLE = 200, 160, 40
BATCH, EPOCHS = 4, 12
CLIP_BYTES = 4 * ROIS * FRAMES


@pytest.fixture
def folder(tmp_path) -> Path:
    """Forty runs of the published length."""
    rng = np.random.default_rng(0)
    labels = [f"roi{r}" for r in range(ROIS)]
    with FolderWriter(tmp_path / "data", roi_labels=labels, atlas="x", provenance={}) as writer:
        for i in range(PEOPLE):
            series = rng.standard_normal((ROIS, 490), dtype=np.float32)
            writer.add_run(series, participant_id=f"p{i}", tr=0.735)
    return tmp_path / "data"


def own_bytes(pid: int) -> int:
    """Memory of a process that no file stands behind: pages of the memory map do not count."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "Anonymous":
            return 1024 * int(rest.split()[0])
    raise AssertionError(f"the kernel says nothing about process {pid}")


def test_a_loading_process_does_not_grow(folder):
    """The loader of pretraining: what it reads in its last four of twelve epochs does not stay."""
    data = {"data_dir": str(folder), "crop_size": [ROIS, FRAMES], "normalization": "robust"}
    config = config_from_dict({"data": data}, "a test")
    loader = DataLoader(
        NumberedSamples(init_dataset(config, "train", config.clip_input)),
        batch_sampler=MicroBatchSampler(PEOPLE, batch_size=BATCH, epochs=EPOCHS),
        collate_fn=init_collator(config, seed=0),
        num_workers=1,
    )
    before = {process.pid for process in multiprocessing.active_children()}
    sizes = []
    for batch, _, _ in loader:
        assert batch["fmri"].shape == (BATCH, 1, ROIS, FRAMES)
        workers = [p.pid for p in multiprocessing.active_children() if p.pid not in before]
        if workers:  # after its last batch the process may have ended
            sizes.append(own_bytes(*workers))
    batches = EPOCHS * PEOPLE // BATCH
    assert len(sizes) > 0.9 * batches
    # Before, the allocator takes what it needs, a hundred clips or so, and then uses it again.
    last = sizes[2 * batches // 3 :]
    assert max(last) - last[0] < 0.5 * len(last) * BATCH * CLIP_BYTES
