"""What is hidden of a clip: half of the ROIs at all times, or the last frames of all ROIs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from src.utils.errors import UserError


@dataclass(frozen=True)
class Hiding:
    """Hidden are ``patches`` of ``rois``; the tokens of a grid (R, P) are ROI-major (method 1).

    Either ``patches`` are all patches (imputation), or ``rois`` all ROIs and ``patches`` the last
    ones (forecast).
    """

    name: str
    grid: tuple[int, int]
    patch_size: int
    rois: np.ndarray
    patches: np.ndarray

    @cached_property
    def visible_rois(self) -> np.ndarray:
        """ROIs that are seen at some time."""
        everyone = np.arange(self.grid[0])
        return everyone if self.is_forecast else np.setdiff1d(everyone, self.rois)

    @property
    def is_forecast(self) -> bool:
        return len(self.patches) < self.grid[1]

    @property
    def visible_frames(self) -> int:
        """Frames from the start of the clip that visible ROIs are seen at."""
        patches = self.grid[1] - len(self.patches) if self.is_forecast else self.grid[1]
        return patches * self.patch_size

    @cached_property
    def hidden_tokens(self) -> Tensor:
        """``[H * K]``, of H ROIs and K patches."""
        return torch.from_numpy((self.rois[:, None] * self.grid[1] + self.patches).ravel())

    @cached_property
    def visible_tokens(self) -> Tensor:
        """``[V * visible patches]``."""
        patches = np.arange(self.visible_frames // self.patch_size)
        return torch.from_numpy((self.visible_rois[:, None] * self.grid[1] + patches).ravel())

    def take_hidden(self, clips: Tensor) -> Tensor:
        """The hidden values ``[B, H, K, patch_size]`` of clips ``[B, R, T]``."""
        patches = clips.unflatten(-1, (self.grid[1], self.patch_size))
        return patches[:, self.rois][:, :, self.patches]

    def fill(self, shown: Tensor, hidden: Tensor) -> Tensor:
        """Clips ``[B, R, T]`` with the values ``hidden`` where they were hidden."""
        clips = shown.unflatten(-1, (self.grid[1], self.patch_size)).clone()
        clips[:, torch.from_numpy(self.rois)[:, None], torch.from_numpy(self.patches)] = hidden
        return clips.flatten(-2)

    def show(self, clips: Tensor) -> Tensor:
        """The clips with NaN where they are hidden: whatever read those would be seen to."""
        return self.fill(clips, torch.tensor(torch.nan))


def forecast_hiding(grid: tuple[int, int], patch_size: int, frames: int | None) -> list[Hiding]:
    """Hide the last ``frames`` of all ROIs, by default one patch.

    Raises:
        UserError: if they are no patches, or nothing would be seen.
    """
    rois, patches = grid
    frames = patch_size if frames is None else frames
    if frames % patch_size or not 0 < frames < patches * patch_size:
        raise UserError(
            f"signal.frames is {frames}; the checkpoint's clips have {patches} patches of "
            f"{patch_size} frames: give a multiple of {patch_size} below {patches * patch_size}."
        )
    last = np.arange(patches - frames // patch_size, patches)
    return [Hiding(f"last {frames} frames", grid, patch_size, np.arange(rois), last)]


def random_hidings(
    grid: tuple[int, int], patch_size: int, fraction: float, draws: int, seed: int
) -> list[Hiding]:
    """Hide random ROIs, ``draws`` times, by a generator of its own."""
    rois, patches = grid
    n = _count(rois, fraction)
    generator = np.random.default_rng([seed, rois])
    hidden = [np.sort(generator.permutation(rois)[:n]) for _ in range(draws)]
    everywhen = np.arange(patches)
    return [Hiding(f"draw {i + 1}", grid, patch_size, h, everywhen) for i, h in enumerate(hidden)]


def network_hidings(
    grid: tuple[int, int],
    patch_size: int,
    networks: Sequence[str],
    fraction: float,
    draws: int,
    seed: int,
) -> list[Hiding]:
    """Hide whole networks, in random order until ``fraction`` of the ROIs is reached or passed.

    Raises:
        UserError: if there is one network only.
    """
    rois, patches = grid
    names = sorted(set(networks))
    if len(names) < 2:
        raise UserError(f"signal.hidden is networks, and all ROIs are of one: {names[0]}.")
    of_roi, wanted = np.array(networks), _count(rois, fraction)
    generator = np.random.default_rng([seed, rois])
    hidings = []
    for _ in range(draws):
        order, chosen = generator.permutation(names), []
        while np.isin(of_roi, chosen).sum() < wanted and len(chosen) < len(names) - 1:
            chosen.append(order[len(chosen)])
        hidden = np.flatnonzero(np.isin(of_roi, chosen))
        hidings.append(
            Hiding(", ".join(sorted(chosen)), grid, patch_size, hidden, np.arange(patches))
        )
    return hidings


def hemisphere_hidings(
    grid: tuple[int, int], patch_size: int, sides: Sequence[str | None]
) -> list[Hiding]:
    """Hide the left hemisphere, then the right one; ROIs of neither (``None``) are seen.

    Raises:
        UserError: if one side has no ROI.
    """
    of_roi = np.array([side or "" for side in sides])
    hidings = []
    for side in ("left", "right"):
        hidden = np.flatnonzero(of_roi == side)
        if not len(hidden):
            raise UserError(f"signal.hidden is hemisphere, and no ROI is known to be {side}.")
        hidings.append(Hiding(side, grid, patch_size, hidden, np.arange(grid[1])))
    return hidings


def _count(rois: int, fraction: float) -> int:
    n = round(rois * fraction)
    if not 0 < n < rois:
        raise UserError(f"signal.fraction is {fraction:g}: of {rois} ROIs {n} would be hidden.")
    return n
