"""Checkpoints of every kind, small, for the tests of what reads them."""

from pathlib import Path

import numpy as np
from pretraining_helpers import make_data, tiny_config, train_here

REFERENCE = Path(__file__).parent / "reference"


def pretraining_run(folder: Path, *overrides: str) -> tuple[Path, Path]:
    """Pretrain for a second on twelve synthetic people: (data folder, run folder)."""
    data = make_data(folder / "data")
    config = tiny_config(data, folder / "run", *overrides)
    train_here(config)
    return data, folder / "run"


def reference(name: str, folder: Path) -> tuple[Path, dict[str, np.ndarray], dict]:
    """A reference file, its arrays, and the flags that say what the file does not."""
    arrays = dict(np.load(REFERENCE / f"{name}.npz"))
    csv = folder / f"{name}.csv"
    np.savetxt(csv, arrays["gradient"], delimiter=",")
    suffix = ".pth" if name == "tiny_finetuned" else ".pth.tar"
    heads = int(arrays["config"][3])
    return (
        REFERENCE / f"{name}{suffix}",
        arrays,
        {"num_heads": heads, "gradient_csv_path": csv},
    )
