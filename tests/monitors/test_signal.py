"""Signal monitors against their definition, on clips whose signal is known."""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from src.models.jepa import Networks
from src.models.layers import apply_masks
from src.monitors import signal, verdict
from src.monitors.clips import N_FOLDS
from src.utils.ridge import STRENGTHS

ROIS, PATCHES, FRAMES = 10, 4, 6
GRID = (ROIS, PATCHES)
CPU = torch.device("cpu")
Clips = tuple[torch.Tensor, torch.Tensor]


def clips_of(people: range, per_person: int = 6, shared: float = 1.0, seed: int = 0) -> Clips:
    """Clips ``[S, 1, R, T]``: one course in all ROIs, noise, and each person's level and amplitude.

    Also the number of each one's person ``[S]``. Levels differ from ROI to ROI, and outweigh all.
    """
    rng = np.random.default_rng([seed, people.start])
    numbers = np.repeat(np.array(people), per_person)
    shape = (len(numbers), ROIS, PATCHES * FRAMES)
    course = shared * rng.standard_normal((len(numbers), 1, shape[2])) + rng.standard_normal(shape)
    amplitude = np.exp(0.5 * rng.standard_normal(len(people)))
    level = 10 * rng.standard_normal((len(people), ROIS))
    person = numbers - people.start
    values = amplitude[person, None, None] * course + level[person, :, None]
    return torch.from_numpy(values[:, None]).float(), torch.from_numpy(numbers)


class Sees(nn.Module):
    """A target encoder whose tokens are the frames of their patches; an encoder that is refused."""

    def forward(self, x: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return apply_masks(x.reshape(len(x), ROIS * PATCHES, FRAMES), masks)


class SeesAll(nn.Module):
    """One that is not blind to what is hidden."""

    def forward(self, x: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), ROIS * PATCHES, FRAMES)


class Refuses(nn.Module):
    def forward(self, x: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the encoder in training is not the network that evaluation uses")


class Says(nn.Module):
    """A predictor whose features are ``answer`` of frames ``[B, R', P', F]`` and hidden tokens."""

    def __init__(self, answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def features(
        self, context: torch.Tensor, seen: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        rois = (seen[0] // PATCHES).unique() if context.shape[1] == seen.shape[1] else range(ROIS)
        return self.answer(context.unflatten(1, (len(rois), -1)), hidden)


def of_the_same_time(frames: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Mean over the visible ROIs of the frames of the hidden token's patch ``[B, Q, F]``."""
    return frames.mean(1)[:, hidden[0] % PATCHES]


def noise(frames: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    return torch.randn(
        *hidden.shape, FRAMES, generator=torch.Generator().manual_seed(int(hidden.sum()))
    )


def errors(
    answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    training: Clips,
    held_out: Clips,
    encoder: nn.Module | None = None,
    size: int = 7,
) -> signal.Errors:
    networks = Networks(Refuses(), Says(answer), encoder or Sees())
    batches = (list(zip(*(t.split(size) for t in c), strict=True)) for c in (training, held_out))
    questions = signal.imputation(GRID, seed=0)
    return signal.measure(networks, *batches, questions, GRID, CPU, nullcontext)


TRAINING, HELD_OUT = clips_of(range(12)), clips_of(range(100, 105))


# --- questions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(10, 4), (7, 3)])
def test_each_roi_is_asked_for_once_at_all_times_and_then_not_seen(grid):
    rois, patches = grid
    asked = []
    for question in signal.imputation(grid, seed=3):
        both = torch.cat(question)
        assert sorted(both.tolist()) == list(range(rois * patches))
        hidden = (question.hidden // patches).unique()
        assert len(hidden) in (rois // 2, rois - rois // 2)
        assert len(question.hidden) == len(hidden) * patches
        asked += hidden.tolist()
    assert sorted(asked) == list(range(rois))


def test_halves_are_a_function_of_the_seed_alone():
    draws = [signal.imputation((40, 2), seed)[0].hidden.tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_a_forecast_asks_for_the_last_patch_of_all_rois():
    (question,) = signal.forecast(GRID)
    assert question.hidden.tolist() == [roi * PATCHES + PATCHES - 1 for roi in range(ROIS)]
    assert sorted(torch.cat(question).tolist()) == list(range(ROIS * PATCHES))


# --- scores --------------------------------------------------------------------------------------


def test_hidden_signal_that_the_features_hold_is_found():
    """One course in all ROIs, as strong as the noise of each: about half of the variance."""
    found = errors(of_the_same_time, TRAINING, HELD_OUT)
    assert found.r2() == pytest.approx(1 / 2 - 1 / (2 * (1 + ROIS // 2)), abs=0.05)


def test_features_without_the_signal_have_r2_zero():
    found = errors(noise, TRAINING, HELD_OUT)
    assert abs(found.r2()) < 0.01


def traits(frames: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Level and amplitude of each hidden ROI and of the clip, of a predictor that sees all."""
    own = frames.flatten(2)[:, hidden[0] // PATCHES]  # [B, Q, T]
    of_roi = torch.stack([own.mean(-1), own.std(-1)], dim=-1)
    of_clip = of_roi.mean(1, keepdim=True).expand_as(of_roi)
    return torch.cat([of_roi, of_clip], dim=-1)


def test_traits_of_clip_and_person_are_no_signal_even_if_they_act_differently_in_each_roi():
    """A latent R2 may be 1 by these."""
    found = errors(traits, TRAINING, HELD_OUT, encoder=SeesAll())
    assert abs(found.r2()) < 0.01
    assert errors(of_the_same_time, TRAINING, HELD_OUT, encoder=SeesAll()).r2() > 0.3


def test_a_run_that_learns_traits_never_learns_and_one_that_learns_the_signal_always_does():
    """From noise to either, in twenty studies of other people."""
    for seed in range(1, 21):
        clips = clips_of(range(12), seed=seed), clips_of(range(100, 105), seed=seed)
        measured = {}
        for answer in (noise, traits, of_the_same_time):
            found = errors(answer, *clips, encoder=SeesAll())
            people = found.r2_of_people(clips[1][1].numpy())
            measured[answer] = {"signal_r2": found.r2(), "people": people, "clips": str(seed)}
            measured[answer] |= {"variance": 0.3, "rankme": 5.0}
        first = measured[noise]
        before = {"untrained": first, "first": first}
        assert verdict(before | {"last": measured[traits]}).startswith("NOT LEARNING")
        assert verdict(before | {"last": measured[of_the_same_time]}).startswith("learning")


def test_the_read_out_is_that_of_its_definition():
    """By scikit-learn and loops: one map, intercepts of ROIs, strength by people left out."""
    held_out = clips_of(range(100, 105), shared=0.6)
    found = errors(of_the_same_time, TRAINING, held_out)

    def samples(clips):
        rows = []
        for x, person in zip(*clips, strict=True):
            patches = x[0].reshape(ROIS, PATCHES, FRAMES).double()
            own = patches - patches.mean((1, 2), keepdim=True)
            for question in signal.imputation(GRID, seed=0):
                hidden = (question.hidden // PATCHES).unique().tolist()
                seen = [roi for roi in range(ROIS) if roi not in hidden]
                for roi in hidden:
                    for p in range(PATCHES):
                        rows.append((roi, int(person), patches[seen, p].mean(0), own[roi, p]))
        roi, person, features, frames = zip(*rows, strict=True)
        return np.array(roi), np.array(person), *(np.stack(v) for v in (features, frames))

    roi, person, x, y = samples(TRAINING)

    def centred(rows):
        mean_x = np.stack([x[rows & (roi == r)].mean(0) for r in range(ROIS)])
        mean_y = np.stack([y[rows & (roi == r)].mean(0) for r in range(ROIS)])
        return x[rows] - mean_x[roi[rows]], y[rows] - mean_y[roi[rows]], mean_x, mean_y

    def fitted(rows, strength):
        cx, cy, mean_x, mean_y = centred(rows)
        ridge = Ridge(alpha=strength * (cx**2).sum() / FRAMES, fit_intercept=False).fit(cx, cy)
        return lambda x, roi: (x - mean_x[roi]) @ ridge.coef_.T + mean_y[roi]

    loss = []
    for strength in STRENGTHS:
        loss.append(0.0)
        for fold in range(N_FOLDS):
            inside = person % N_FOLDS == fold
            guess = fitted(~inside, strength)(x[inside], roi[inside])
            loss[-1] += ((y[inside] - guess) ** 2).sum()
    everyone = np.full(len(x), True)
    predict = fitted(everyone, STRENGTHS[int(np.argmin(loss))])
    mean = centred(everyone)[3]
    roi, person, x, y = samples(held_out)
    of_read_out, of_mean = ((y - guess) ** 2 for guess in (predict(x, roi), mean[roi]))
    assert found.r2() == pytest.approx(1 - of_read_out.sum() / of_mean.sum(), abs=1e-4)
    ids = np.array([f"p{number}" for number in held_out[1]])
    for number, value in zip(range(100, 105), found.r2_of_people(ids), strict=True):
        own = person == number
        expected = 1 - of_read_out[own].sum() / of_mean[own].sum()
        assert value == pytest.approx(expected, abs=1e-4)


def test_the_read_out_is_fitted_to_training_clips_only():
    """Features that mean the opposite in the clips that come second are of no use there."""
    sign = 1.0

    def second():
        nonlocal sign
        sign = -1.0
        yield HELD_OUT

    networks = Networks(Refuses(), Says(lambda *seen: sign * of_the_same_time(*seen)), Sees())
    questions = signal.imputation(GRID, seed=0)
    found = signal.measure(networks, [TRAINING], second(), questions, GRID, CPU, nullcontext)
    assert found.r2() < -0.5


@pytest.mark.parametrize("size", [1, 60])
def test_the_batch_size_changes_nothing(size):
    one, other = (
        errors(of_the_same_time, TRAINING, HELD_OUT, size=n).r2_of_people(HELD_OUT[1].numpy())
        for n in (7, size)
    )
    assert one == pytest.approx(other, abs=1e-5)
