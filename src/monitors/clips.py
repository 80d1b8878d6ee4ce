"""The clips that are measured: the same few each time, of a split's people."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..datasets.clip_input import ClipInput
from ..helper import init_dataset
from ..utils.progress import progress_bar

N_FOLDS = 5  # parts of the training people, for the choice of a ridge strength

Batches = Iterable[tuple[Tensor, Tensor]]
Autocast = Callable[[], AbstractContextManager]


class FixedClips:
    """The same few clips at every measurement, evenly spread over the runs of a split, none twice.

    They are ordered so that neighbours, last and first among them, are of different people, unless
    one person has more than half of the clips.

    Iteration gives batches: clips ``[B, 1, R, T]`` and the number of each one's person ``[B]`` (of
    the clip itself if there is one person only, so that folds can be made).

    Attributes:
        ids: participant id of each clip, str ``[S]``.
        name: changes with the split, the clips, and how they are cut.
    """

    def __init__(self, config: Config, split: str, clip_input: ClipInput) -> None:
        self._dataset = init_dataset(config, split, clip_input, clips="center")
        self._batch_size = config.data.batch_size
        self._label = f"monitors, clips of {split}"
        n_runs, wanted = len(self._dataset), config.logging.monitor_clips
        per_run = math.ceil(wanted / n_runs)
        clips = [
            (run, start)
            for run in _spread(n_runs, wanted).tolist()
            for start in self._dataset.even_starts(run, per_run)
        ]
        chosen = [clips[i] for i in _spread(len(clips), wanted).tolist()]
        ids = self._dataset.participant_ids[[run for run, _ in chosen]]
        names, people = np.unique(ids, return_inverse=True)
        order = people_apart(people)
        self._clips = [chosen[i] for i in order.tolist()]
        self._people = torch.from_numpy(people[order] if len(names) > 1 else np.arange(len(chosen)))
        self.ids = ids[order]
        rows = [(int(self._dataset.rows[run]), start) for run, start in self._clips]
        self.name = hashlib.sha256(repr((split, rows)).encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self._clips)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        firsts = range(0, len(self), self._batch_size)
        for first in progress_bar(firsts, desc=self._label, unit="batch", leave=False):
            batch = slice(first, first + self._batch_size)
            clips = [self._dataset.clip(run, start) for run, start in self._clips[batch]]
            yield torch.stack(clips), self._people[batch]


def _spread(n: int, wanted: int) -> np.ndarray:
    """``wanted`` of the numbers below ``n`` at most, evenly spread."""
    return np.linspace(0, n - 1, min(n, wanted)).round().astype(int)


def people_apart(people: np.ndarray) -> np.ndarray:
    """Return an order int ``[S]`` whose neighbours, last and first too, are of different people.

    It exists unless one person has more than half of the samples: people with the most samples
    first, the first half of them at even places and the rest between them.
    """
    counts = np.bincount(people)
    by_person = np.lexsort((people, -counts[people]))
    order = np.empty_like(by_person)
    half = -(-len(people) // 2)
    order[0::2], order[1::2] = by_person[:half], by_person[half:]
    return order
