"""Which clips are in which micro-batch: a pure function of (seed, step, rank)."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset, Sampler

from ..utils.errors import UserError

Item = tuple[int, int, int]


class MicroBatchSampler(Sampler[list[Item]]):
    """Yield micro-batches of ``(item, pass, draw)``, from ``first_step`` to the end of training.

    An epoch visits every item ``repeats`` times in an order drawn from (seed, epoch); what does not
    fill an optimizer step is left out of that epoch. Each micro-step takes ``world_size *
    batch_size`` items, of which rank r gets the r-th slice, so two processes with batches of 4 see
    what one process with a batch of 8 sees. ``pass`` tells the visits of an item apart, and
    ``draw``, the number of the micro-step, seeds its masks.

    Args:
        n_items: clips of the data set.
        batch_size: clips per process and micro-step.
        accumulation: micro-steps per optimizer step.
    """

    def __init__(
        self,
        n_items: int,
        *,
        batch_size: int,
        accumulation: int = 1,
        epochs: int = 1,
        repeats: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        first_step: int = 0,
    ) -> None:
        self.n_items, self.repeats, self.seed = n_items, repeats, seed
        self.batch_size, self.accumulation = batch_size, accumulation
        self.rank, self.world_size = rank, world_size
        self.epochs, self.first_step = epochs, first_step
        global_batch = batch_size * world_size * accumulation
        self.steps_per_epoch = n_items * repeats // global_batch
        if self.steps_per_epoch == 0:
            raise UserError(
                f"an epoch has {n_items} clips x data.repeats {repeats}, fewer than the global "
                f"batch of {global_batch} ({batch_size} per device x {accumulation} accumulation "
                f"steps x {world_size} devices). Lower data.batch_size or "
                "meta.accumulation_steps, or raise data.repeats."
            )

    def __len__(self) -> int:
        return (self.steps_per_epoch * self.epochs - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Item]]:
        width = self.batch_size * self.world_size
        for step in range(self.first_step, self.steps_per_epoch * self.epochs):
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if step_in_epoch == 0 or step == self.first_step:
                order = np.random.default_rng([self.seed, epoch]).permutation(
                    self.n_items * self.repeats
                )
            for micro in range(self.accumulation):
                start = (step_in_epoch * self.accumulation + micro) * width
                start += self.rank * self.batch_size
                chosen = order[start : start + self.batch_size].tolist()
                draw = step * self.accumulation + micro
                yield [
                    (k % self.n_items, epoch * self.repeats + k // self.n_items, draw)
                    for k in chosen
                ]


class NumberedSamples(Dataset):
    """A data set read by ``(item, pass, draw)``; the draw goes on to the mask collator."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Item) -> dict:
        item, visit, draw = key
        return {**self.dataset[(item, visit)], "draw": draw}
