"""Numbers of the training steps, kept on the device until a logging step reads them all at once."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from .distributed import Ranks
from .errors import UserError

MOST_NAMES = 10  # of samples in one message


@dataclass
class StepRecord:
    """One optimizer step of this process.

    Attributes:
        losses: the loss of each micro-step, on the device.
        rows: numbers of the samples of each micro-step.
        scalars: values that are on the host already, such as step and learning rate.
        parts: parts of the loss by their columns, means over the micro-steps, on the device.
    """

    losses: list[Tensor]
    grad_norm: Tensor
    rows: list[list[int]]
    scalars: dict[str, float]
    parts: dict[str, Tensor] = field(default_factory=dict)


class NonFiniteLoss(Exception):
    """A loss or gradient is not finite.

    Attributes:
        step: the optimizer step.
        before: rows of the steps before it that have not been written.
        rows: numbers of the samples whose loss was not finite, sorted; all of the step's if only
            the gradient overflowed.
    """

    def __init__(
        self, step: int, rows: Sequence[int], what: str, before: list[dict[str, float]]
    ) -> None:
        super().__init__(f"the {what} of optimizer step {step} is not finite")
        self.step, self.rows, self.before = step, sorted(set(rows)), before

    def explained(
        self, runs: pd.DataFrame, remedy: str, last_good: Path | None = None
    ) -> UserError:
        """Return the error message for the user whose run ends here.

        Args:
            runs: rows of participants.tsv of the samples in question.
            remedy: what else may help.
            last_good: the checkpoint before it, which need not be there.
        """
        keys = runs[["participant_id", "session", "run"]].drop_duplicates()
        names = [
            f"{key.participant_id} (session {key.session}, run {key.run})"
            for key in keys[:MOST_NAMES].itertuples()
        ]
        if more := len(keys) - len(names):
            names.append(f"and {more} more")
        message = f"{self}. Samples: {', '.join(names)}. Look at these runs, or {remedy}."
        if last_good is not None:
            there = f"The last good checkpoint is {last_good}." if last_good.exists() else ""
            message += f" {there or 'There is no checkpoint yet.'}"
        return UserError(message)


class StepBuffer:
    """Buffer of :class:`StepRecord` that leaves them on the device until :meth:`flush`."""

    def __init__(self) -> None:
        self._records: list[StepRecord] = []
        self._since = time.perf_counter()

    def restart_clock(self) -> None:
        """Leave out of the time per step what has been done since the last flush."""
        self._since = time.perf_counter()

    def add(self, record: StepRecord) -> None:
        """Keep a step."""
        self._records.append(record)

    def flush(self, ranks: Ranks) -> list[dict[str, float]]:
        """Return one row per step since the last flush: the losses over all ranks, and its scalars.

        Every rank must call it at the same step. Raises :class:`NonFiniteLoss` in every rank if any
        of them met one.
        """
        records, self._records = self._records, []
        if not records:
            return []
        own = torch.stack(
            [
                torch.stack([*record.losses, *record.parts.values(), record.grad_norm])
                for record in records
            ]
        ).tolist()
        now = time.perf_counter()
        milliseconds = (now - self._since) / len(records) * 1e3
        self.restart_clock()
        everyone = ranks.gather((own, [record.rows for record in records]))
        out = []
        for index, record in enumerate(records):
            values = [numbers[index] for numbers, _ in everyone]
            micro_steps = len(record.losses)
            step = int(record.scalars["step"])
            bad = [
                row
                for numbers, (_, rows) in zip(values, everyone, strict=True)
                for loss, micro in zip(numbers[:micro_steps], rows[index], strict=True)
                if not math.isfinite(loss)
                for row in micro
            ]
            if bad:
                raise NonFiniteLoss(step, bad, "loss", out)
            if not math.isfinite(values[0][-1]):
                rows = [row for _, rows in everyone for micro in rows[index] for row in micro]
                raise NonFiniteLoss(step, rows, "gradient", out)
            losses = [loss for numbers in values for loss in numbers[:micro_steps]]
            parts = zip(*(numbers[micro_steps:-1] for numbers in values), strict=True)
            out.append(
                {
                    **record.scalars,
                    "loss": sum(losses) / len(losses),
                    **{
                        name: sum(part) / len(part)
                        for name, part in zip(record.parts, parts, strict=True)
                    },
                    "grad_norm": values[0][-1],
                    "time (ms)": round(milliseconds, 2),
                }
            )
        return out
