"""Measure loading, masks and the training step, as ratios within one run.

    python scripts/benchmark.py                          # the published size, synthetic data
    python scripts/benchmark.py --fname configs/quickstart.yaml --devices cuda:0
    python scripts/benchmark.py --check                  # loading and masks against their limits

Ratios, because seconds of one machine say little about another: loading against slicing the raw
memory map, masks against stacking the clips of their batch, the step's arithmetic against the rate
at which this device multiplies large matrices, one attention backend against the other, and the
attention bias (method 11.3) against none.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.config import Config, load_config
from src.datasets.fmri import FMRIDataset
from src.datasets.prepare.synthetic import write_synthetic
from src.helper import init_collator, init_model, init_opt
from src.train import train_step
from src.utils.distributed import default_devices, parse_devices
from src.utils.errors import run_main
from src.utils.precision import autocast

Row = tuple[str, str, str]

N_MASKS = 16  # samples whose masks are measured together
ROUNDS = 50
N_GRADIENTS = 30  # of the published file
# What loading a clip may cost, in copies of its slice of the memory map, by normalisation.
SAMPLE_LIMITS = {
    "robust": 1.6,
    "robust_frames": 1.6,
    "zscore_sample": 2.3,
    "zscore_roi": 3.0,
    "none": 1.4,
}
# What masks may cost, in stackings of the clips they are for (0.33 ms at 450 x 160), by mode.
MASK_LIMITS = {"spatiotemporal": 1.8, "multiblock": 5.0, "roi": 0.8, "forecast": 0.8}
CHECKED_AGAIN = 2  # times: other programs can only add to a cost, so the lowest ratio counts


class Cost(NamedTuple):
    """Seconds of something, of what it is compared with, and how many times those it may take."""

    what: str
    seconds: float
    beside: str
    beside_seconds: float
    limit: float

    @property
    def ratio(self) -> float:
        """How many times as long it takes."""
        return self.seconds / self.beside_seconds

    def row(self) -> Row:
        """A line of the table."""
        return self.what, f"{self.seconds * 1e6:.0f} us", f"{self.ratio:.2f} x {self.beside}"


def exceeded(costs: Sequence[Cost]) -> list[str]:
    """One line for each cost above its limit."""
    return [
        f"limit exceeded: {cost.what} took {cost.ratio:.2f} x {cost.beside}, not {cost.limit:g}"
        for cost in costs
        if cost.ratio > cost.limit
    ]


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of ``work``, after one call that warms up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def shortest_seconds(works: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Shortest time of each of ``works``, taken in turn: other programs can only add to it."""
    times = np.empty((rounds, len(works)))
    for i in range(-1, rounds):  # the first round warms up, and its times are overwritten
        for j, work in enumerate(works):
            start = time.perf_counter()
            work()
            times[i, j] = time.perf_counter() - start
    return times.min(axis=0).tolist()


def measure_loading(config: Config, folder: Path, rounds: int) -> list[Cost]:
    """A clip in every normalisation against a copy of the same slice of the raw memory map."""
    rois, frames = config.data.crop_size
    datasets = {
        method: FMRIDataset(folder, "train", config.clip_input.changed(normalization=method))
        for method in SAMPLE_LIMITS
    }
    first = next(iter(datasets.values()))
    flat = np.load(folder / "timeseries.npy", mmap_mode="r")
    length = int(first.folder.frames[0])
    stride = config.clip_input.stride or 1

    def raw(i: int) -> np.ndarray:
        run = flat[i * rois * length : (i + 1) * rois * length].reshape(rois, length)
        return np.array(run[:, : stride * frames : stride])

    def sweep(read: Callable[[int], object]) -> Callable[[], None]:
        def read_all() -> None:
            for i in range(len(first)):
                read(i)

        return read_all

    reads = [raw, *(dataset.__getitem__ for dataset in datasets.values())]
    slicing, *loading = shortest_seconds([sweep(read) for read in reads], rounds)
    n = len(first)
    return [
        Cost(f"sample, {method}", time / n, "the slice", slicing / n, SAMPLE_LIMITS[method])
        for method, time in zip(datasets, loading, strict=True)
    ]


def measure_masks(config: Config, rounds: int) -> list[Cost]:
    """Masks of a batch in each mode against putting its clips together, a collator's other work."""
    clips = [torch.randn(1, *config.data.crop_size) for _ in range(N_MASKS)]
    steps = iter(range(1_000_000))

    def draw(mode: str) -> Callable[[], object]:
        meta = replace(config.meta, mask_mode=mode)
        collator = init_collator(replace(config, meta=meta), seed=0)
        return lambda: collator.sample(N_MASKS, next(steps))

    stacking, *drawing = shortest_seconds(
        [lambda: torch.stack(clips), *map(draw, MASK_LIMITS)], rounds
    )
    return [
        Cost(f"masks of {N_MASKS} samples, {mode}", time, "their stacking", stacking, limit)
        for (mode, limit), time in zip(MASK_LIMITS.items(), drawing, strict=True)
    ]


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
    config: Config, changes: dict[str, str], device: torch.device, repeats: int
) -> tuple[float, float, float]:
    """Seconds and FLOPs of an optimizer step (the same masks each time), and peak memory.

    ``changes`` are keys of ``meta``. PyTorch does not count what a CPU's fused attention does, so
    only ``attn_mode: normal`` gives all FLOPs.
    """
    config = replace(config, meta=replace(config.meta, **changes))
    rois, frames = config.data.crop_size
    collator = init_collator(config, seed=0)
    networks = init_model(config, torch.randn(rois, N_GRADIENTS), device)
    optimizer, schedule = init_opt(networks, config, 100)
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


def measure_input(config: Config) -> list[Cost]:
    """Loading and masks, in one thread, as in the worker process of a DataLoader."""
    rois, frames = config.data.crop_size
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "synthetic"
        length = (config.clip_input.stride or 1) * frames + 10
        write_synthetic(folder, 40, n_rois=rois, frames=length)
        costs = [*measure_loading(config, folder, ROUNDS), *measure_masks(config, 10 * ROUNDS)]
    torch.set_num_threads(threads)
    return costs


def measure_training(
    config: Config, device: torch.device, repeats: int, mask_seconds: float
) -> list[Row]:
    """A training step by both attention backends, and with a bias, as lines of the table."""
    bfloat16 = autocast(device, config.meta.use_bfloat16)().__class__ is torch.autocast
    rate = matmul_rate(device, torch.bfloat16 if bfloat16 else torch.float32)
    name = "bfloat16" if bfloat16 else "float32"
    rows = [(f"matrix product, {name}", f"{rate / 1e9:.0f} GFLOP/s", "1")]
    plain = {"attention_bias": "none", "bias_components": None}
    biased = {"attention_bias": "gradient", "attn_mode": "sdpa"}
    steps = {  # the lighter first: a CPU's peak memory never falls
        "sdpa": measure_step(config, plain | {"attn_mode": "sdpa"}, device, repeats),
        "bias": measure_step(config, biased, device, repeats),
        "normal": measure_step(config, plain | {"attn_mode": "normal"}, device, repeats),
    }
    flops = steps["normal"][1]
    for attn_mode in ("sdpa", "normal"):
        time_of_step, _, memory = steps[attn_mode]
        rows.append(
            (
                f"training step, {attn_mode}",
                f"{time_of_step:.2f} s, {flops / 1e12:.3f} TFLOP, {memory:.1f} GiB at most",
                f"{100 * flops / time_of_step / rate:.0f} % of the matrix product's rate",
            )
        )
    (fused, _, memory), (with_bias, _, more) = steps["sdpa"], steps["bias"]
    rows.append(("sdpa against normal", "", f"{steps['normal'][0] / fused:.2f} x as fast"))
    components = config.meta.bias_components or N_GRADIENTS
    rows.append(
        (
            f"attention bias, {components} dimensions",
            f"{with_bias:.2f} s, {more:.1f} GiB at most",
            f"{with_bias / fused:.2f} x a step without, {more / memory:.2f} x its memory",
        )
    )
    rows.append(("slowest masks against a step", "", f"{100 * mask_seconds / fused:.3f} % of it"))
    return rows


def main() -> int:
    """Measure and print one table; exit code 1 if ``--check`` finds a limit exceeded."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fname", default="configs/ukb_vitb_ep300.yaml", metavar="YAML")
    parser.add_argument("--devices", nargs=1, default=default_devices(), metavar="DEVICE")
    parser.add_argument("--repeats", type=int, default=3, help="timed training steps")
    parser.add_argument(
        "--check",
        action="store_true",
        help="no training step; exit code 1 if loading or masks cost more than their limits",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.fname, arguments.overrides)
    (device,) = parse_devices(arguments.devices)

    costs = measure_input(config)
    for _ in range(CHECKED_AGAIN if arguments.check else 0):
        if not exceeded(costs):
            break
        again = measure_input(config)
        costs = [min(pair, key=lambda cost: cost.ratio) for pair in zip(costs, again, strict=True)]
    rows = [("slice of the raw memory map", f"{costs[0].beside_seconds * 1e6:.0f} us", "1")]
    rows += [cost.row() for cost in costs]
    if not arguments.check:
        slowest = max(cost.seconds for cost in costs if cost.what.startswith("masks"))
        rows += measure_training(config, device, arguments.repeats, slowest)

    rois, frames = config.data.crop_size
    print(
        f"{arguments.fname}: {config.meta.model_name}, {rois} ROIs x {frames} frames, batch "
        f"{config.data.batch_size}, {device}, {torch.get_num_threads()} threads\n"
    )
    print("| what | measured | ratio |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    above = exceeded(costs) if arguments.check else []
    for line in above:
        print(line, file=sys.stderr)
    return int(bool(above))


if __name__ == "__main__":
    run_main(main)
