"""Clips of people in batches of one fold and one hiding."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from downstream_tasks.cohort.clips import ExampleClips
from downstream_tasks.cohort.examples import Cohort, disjoint_groups, usable_runs
from downstream_tasks.cohort.families import family_columns
from downstream_tasks.config import DataConfig
from downstream_tasks.signal.hiding import Hiding
from src.datasets.clip_input import ClipInput
from src.datasets.folder import DataFolder
from src.pretrained.encoder import Pretrained
from src.utils.errors import UserError
from src.utils.progress import progress_bar


@dataclass(frozen=True)
class Batch:
    """Some clips of which the same is hidden.

    Attributes:
        shown: ``[B, R, T]``, NaN where hidden. All that a method may see.
        noise: ``[B, R, T]`` that was added to it, or ``None``.
        hidden: ``[B, H, K, patch_size]``, the values asked for.
        measured: bool ``[B, H]``; not where an ROI of a run is bad, and its values are made up.
        people: numbers of the people ``[B]``.
        fold: of these people, or ``None``: they are in no fold, and nothing is fitted to them.
    """

    hiding: Hiding
    number: int
    shown: Tensor
    noise: Tensor | None
    hidden: Tensor
    measured: Tensor
    people: np.ndarray
    fold: int | None

    @property
    def clean(self) -> "Batch":
        """The same without noise: to be fitted to only."""
        if self.noise is None:
            return self
        return dataclasses.replace(self, shown=self.shown - self.noise, noise=None)

    @property
    def whole(self) -> Tensor:
        """The clips with nothing hidden and no noise, ``[B, R, T]``: to be fitted to only."""
        return self.hiding.fill(self.clean.shown, self.hidden)

    @property
    def whole_seen(self) -> Tensor:
        """As :attr:`whole`, with the noise: inputs of what is fitted to :attr:`whole`."""
        return self.whole if self.noise is None else self.whole + self.noise

    def rois_of(self, x: Tensor) -> Tensor:
        """The ROI of each row of ``x`` ``[B, H, K, .]``: ``[B, H, K]``."""
        return torch.from_numpy(self.hiding.rois)[None, :, None].expand(x.shape[:3])

    def measured_of(self, x: Tensor) -> Tensor:
        """:attr:`measured` for each row of ``x`` ``[B, H, K, .]``: ``[B, H, K]``."""
        return self.measured[:, :, None].expand(x.shape[:3])


class PeopleClips:
    """Batches of the clips of some examples (runs), as the checkpoint takes them.

    The hidings take turns over the clips of a run, and start with another one in the next run of a
    person, so that every person is asked about all of them if they have as many clips.

    Args:
        examples: numbers in the cohort.
        noise: SD of what is added to the values that are seen, the same at every pass.
        fold_of: fold of each person by their number in ``cohort.units``; ``None`` for no folds.
        label: of the progress bar.
    """

    def __init__(
        self,
        cohort: Cohort,
        data: DataConfig,
        pretrained: Pretrained,
        examples: np.ndarray,
        hidings: Sequence[Hiding],
        *,
        clips: int,
        batch_size: int,
        noise: float = 0.0,
        fold_of: np.ndarray | None = None,
        label: str = "clips",
    ) -> None:
        self._clips = ExampleClips(cohort, data, pretrained, clips, examples)
        self._hidings, self._noise = tuple(hidings), noise
        self.label = label
        dataset, per_run = self._clips.dataset, self._clips.per_example
        people = cohort.examples["unit"].to_numpy()[self._clips.examples]
        run_of_person = pd.Series(people).groupby(people).cumcount().to_numpy()
        self._people = np.repeat(people, per_run)
        turn = run_of_person[:, None] + np.arange(per_run)
        turns = turn.ravel() % len(self._hidings)
        rows = cohort.examples["row"].to_numpy()[self._clips.examples]
        self._rows = rows
        self._measured = np.stack([~dataset.folder.bad_roi_mask(row) for row in rows])
        folds = np.full(len(turns), -1) if fold_of is None else fold_of[self._people]
        order = np.lexsort((np.arange(len(turns)), turns, folds))
        cuts = np.flatnonzero(np.diff(folds[order]) | np.diff(turns[order])) + 1
        self._batches = [
            (part[i : i + batch_size], int(turns[part[0]]), int(folds[part[0]]))
            for part in np.split(order, cuts)
            for i in range(0, len(part), batch_size)
        ]

    def __len__(self) -> int:
        return len(self._people)

    def __iter__(self) -> Iterator[Batch]:
        yield from progress_bar(self._read(), total=len(self._batches), desc=self.label)

    def _read(self) -> Iterator[Batch]:
        per_run = self._clips.per_example
        for items, turn, fold in self._batches:
            hiding = self._hidings[turn]
            clips = torch.stack([self._clips[int(i)]["fmri"][0] for i in items])
            noise = self._draw_noise(items, clips.shape) if self._noise else None
            yield Batch(
                hiding,
                turn,
                hiding.show(clips if noise is None else clips + noise),
                noise,
                hiding.take_hidden(clips),
                torch.from_numpy(self._measured[items // per_run][:, hiding.rois]),
                self._people[items],
                None if fold < 0 else fold,
            )

    def _draw_noise(self, items: np.ndarray, shape: torch.Size) -> Tensor:
        """Noise of each clip, whatever its batch."""
        runs, clips = np.divmod(items, self._clips.per_example)
        drawn = [
            np.random.default_rng([self._rows[run], clip]).standard_normal(shape[1:])
            for run, clip in zip(runs, clips, strict=True)
        ]
        return self._noise * torch.from_numpy(np.stack(drawn)).float()


def people_of_folder(folder: DataFolder, config: DataConfig, clip_input: ClipInput) -> Cohort:
    """Everyone with a run that can be used; nothing is predicted of them but their signal.

    Raises:
        UserError: if there is no one.
    """
    where = folder.path / "participants.tsv"
    runs, dropped = usable_runs(folder, config, clip_input)
    if runs.empty:
        raise UserError(f"{where}: no run can be used.")
    table = runs.sort_values("row", kind="stable").reset_index(drop=True)
    disjoint = family_columns(list(table.columns), config.disjoint, str(where))
    units, people = pd.factorize(table["participant_id"])
    examples = table[["row", "participant_id", "split"]].assign(
        start=-1, group=disjoint_groups(table, disjoint), unit=units
    )
    names = pd.DataFrame({"participant_id": people})
    dropped = {reason: names for reason, names in dropped.items() if names}
    together = tuple(key for key in disjoint if key in table)
    return Cohort(examples, np.zeros(len(table)), (), names, dropped, table, together)
