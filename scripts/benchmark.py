"""Measure loading, masks and the training step, as ratios within one run.

    python scripts/benchmark.py                          # the published size, synthetic data
    python scripts/benchmark.py --fname configs/quickstart.yaml --devices cuda:0

Ratios, because seconds of one machine say little about another: loading against slicing the raw
memory map, masks against a training step, the step's arithmetic against the rate at which this
device multiplies large matrices, and one attention backend against the other.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.config import Config, load_config
from src.datasets.fmri import FMRIDataset
from src.datasets.synthetic import write_synthetic
from src.helper import init_collator, init_model, init_opt
from src.train import train_step
from src.utils.distributed import default_devices, parse_devices
from src.utils.errors import run_main
from src.utils.precision import autocast

Row = tuple[str, str, str]


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of ``work``, after one call that warms up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def measure_loading(config: Config, folder: Path) -> list[Row]:
    """One sample against a copy of the same slice of the raw memory map, in alternation."""
    rois, frames = config.data.crop_size
    dataset = FMRIDataset(
        folder, "train", (rois, frames), **config.sampling, normalization=config.normalization
    )
    flat = np.load(folder / "timeseries.npy", mmap_mode="r")
    length = int(dataset.folder.frames[0])
    stride = config.sampling.get("stride", 1)

    def raw(i: int) -> np.ndarray:
        run = flat[i * rois * length : (i + 1) * rois * length].reshape(rois, length)
        return np.array(run[:, : stride * frames : stride])

    def sweep(read: Callable[[int], object]) -> float:
        start = time.perf_counter()
        for i in range(len(dataset)):
            read(i)
        return (time.perf_counter() - start) / len(dataset)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the worker process of a DataLoader
    pairs = [(sweep(raw), sweep(dataset.__getitem__)) for _ in range(51)][1:]
    torch.set_num_threads(threads)
    slicing, loading = (median(column) for column in zip(*pairs, strict=True))
    return [
        ("slice of the raw memory map", f"{slicing * 1e6:.0f} us", "1"),
        ("sample, normalised", f"{loading * 1e6:.0f} us", f"{loading / slicing:.2f} x the slice"),
    ]


def measure_masks(config: Config) -> tuple[float, Row]:
    """Masks of a batch of 16."""
    collator = init_collator(config, seed=0)
    steps = iter(range(100_000))
    time_of_batch = seconds(lambda: collator.sample(16, next(steps)), 500)
    return time_of_batch, ("masks of 16 samples", f"{time_of_batch * 1e3:.2f} ms", "")


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product: the ceiling for everything below."""
    size = 2048 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / seconds(lambda: synchronised(a @ a, device), 10)


def synchronised(value: object, device: torch.device) -> object:
    """Wait for the device, so that the clock sees its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return value


def peak_memory(device: torch.device) -> float:
    """GiB at most: of the device's allocator, or of this process on a CPU (it never falls)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_step(
    config: Config, attn_mode: str, device: torch.device, repeats: int
) -> tuple[float, float, float]:
    """Seconds and FLOPs of an optimizer step (the same masks each time), and peak memory.

    PyTorch does not count what a CPU's fused attention does, so only ``normal`` gives all FLOPs.
    """
    config.meta.attn_mode = attn_mode
    rois, frames = config.data.crop_size
    collator = init_collator(config, seed=0)
    networks = init_model(config, torch.randn(rois, 30), device)
    optimizer, schedule = init_opt(networks.encoder, networks.predictor, config, 100)
    precision = autocast(device, config.meta.use_bfloat16)
    samples = [
        {"fmri": torch.randn(1, rois, frames), "row": 0, "draw": 0}
        for _ in range(config.data.batch_size)
    ]
    batch = collator(samples)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def step() -> None:
        record = train_step(1, iter([batch]), networks, optimizer, schedule, 1, precision)
        synchronised(record, device)

    time_of_step, memory = seconds(step, repeats), peak_memory(device)
    with FlopCounterMode(display=False) as counter:
        step()
    return time_of_step, counter.get_total_flops(), memory


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fname", default="configs/ukb_vitb_ep300.yaml", metavar="YAML")
    parser.add_argument("--devices", nargs=1, default=default_devices(), metavar="DEVICE")
    parser.add_argument("--repeats", type=int, default=3, help="timed training steps")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.fname, arguments.overrides)
    (device,) = parse_devices(arguments.devices)
    rois, frames = config.data.crop_size

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "synthetic"
        length = config.sampling.get("stride", 1) * frames + 10
        write_synthetic(folder, 40, n_rois=rois, frames=length)
        rows = measure_loading(config, folder)
    mask_time, mask_row = measure_masks(config)
    rows.append(mask_row)

    bfloat16 = autocast(device, config.meta.use_bfloat16)().__class__ is torch.autocast
    rate = matmul_rate(device, torch.bfloat16 if bfloat16 else torch.float32)
    name = "bfloat16" if bfloat16 else "float32"
    rows.append((f"matrix product, {name}", f"{rate / 1e9:.0f} GFLOP/s", "1"))
    steps = {  # the lighter first: a CPU's peak memory never falls
        attn_mode: measure_step(config, attn_mode, device, arguments.repeats)
        for attn_mode in ("sdpa", "normal")
    }
    flops = steps["normal"][1]
    for attn_mode, (time_of_step, _, memory) in steps.items():
        rows.append(
            (
                f"training step, {attn_mode}",
                f"{time_of_step:.2f} s, {flops / 1e12:.3f} TFLOP, {memory:.1f} GiB at most",
                f"{100 * flops / time_of_step / rate:.0f} % of the matrix product's rate",
            )
        )
    fused, plain = steps["sdpa"][0], steps["normal"][0]
    rows.append(("sdpa against normal", "", f"{plain / fused:.2f} x as fast"))
    rows.append(("masks against a step", "", f"{100 * mask_time / fused:.3f} % of it"))

    print(
        f"{arguments.fname}: {config.meta.model_name}, {rois} ROIs x {frames} frames, batch "
        f"{config.data.batch_size}, {device}, {torch.get_num_threads()} threads\n"
    )
    print("| what | measured | ratio |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    run_main(main)
