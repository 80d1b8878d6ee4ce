"""A simulated population: an atlas, its group connectivity, and runs of people around it."""

from dataclasses import dataclass

import numpy as np
import scipy.fft

from ...utils.errors import UserError

# Cortical ROIs of each network (left, right) per 400, in Schaefer's order. The sizes of the seven
# families are Schaefer-400's own; how a family is divided among the 17 networks is ours.
_CORTEX = {
    "Vis": (("VisCent", "VisPeri"), 31, 30),
    "SomMot": (("SomMotA", "SomMotB"), 37, 40),
    "DorsAttn": (("DorsAttnA", "DorsAttnB"), 23, 23),
    "SalVentAttn": (("SalVentAttnA", "SalVentAttnB"), 22, 25),
    "Limbic": (("LimbicB", "LimbicA"), 13, 13),
    "Cont": (("ContA", "ContB", "ContC"), 22, 30),
    "Default": (("DefaultA", "DefaultB", "DefaultC", "TempPar"), 52, 39),
}
# Subcortical ROIs of each structure per hemisphere, 25 as in Tian scale III.
_SUBCORTEX = {"HIP": 4, "THA": 8, "PUT": 4, "CAU": 3, "AMY": 2, "NAc": 2, "GP": 2}
FAMILIES = ("Subcortex", *_CORTEX)

FAMILY_SPREAD = 0.15  # SD over people of how much of one family's signal reaches another's
_HIGH_PASS = 0.008  # Hz, the usual cut-off of preprocessing
_KNEE = 0.04  # Hz, above which BOLD power falls
BRAINSPACE_SIZES = (450, 150, 90)  # ROIs: all, the middle one of every three, of every five
_FLOOR = 0.05  # power of what is left at high frequencies, relative to the low ones


@dataclass(frozen=True)
class Atlas:
    """Labels of R ROIs, 50 subcortical of 450 first (method 1), and what each belongs to.

    The labels have the form of the published ones ("HIP-1-rh", "17Networks_LH_VisCent_1") but not
    their names: a checkpoint trained here does not fit real data, or the other way round.
    """

    labels: tuple[str, ...]
    networks: tuple[str, ...]
    families: np.ndarray  # int [R], index into FAMILIES

    @property
    def indicator(self) -> np.ndarray:
        """Float ``[R, families]``: 1 where the ROI is of the family."""
        return (self.families[:, None] == np.arange(len(FAMILIES))).astype(float)


def make_atlas(n_rois: int = 450) -> Atlas:
    """Return the synthetic atlas: at 450 ROIs in the published order, else in its proportions.

    Raises:
        UserError: below 25 ROIs, where a family would be empty.
    """
    parts = [  # (label pattern, network, family, published number of ROIs), in the published order
        (f"{name}-{{}}-{side}", name, "Subcortex", count)
        for side in ("rh", "lh")
        for name, count in _SUBCORTEX.items()
    ]
    for h, side in enumerate(("LH", "RH")):
        for family, (networks, *sizes) in _CORTEX.items():
            shares = np.diff(np.linspace(0, sizes[h], len(networks) + 1).astype(int))
            for name, count in zip(networks, shares.tolist(), strict=True):
                parts.append((f"17Networks_{side}_{name}_{{}}", name, family, count))
    if n_rois < 25:
        raise UserError(f"n_rois is {n_rois}; below 25 some networks would have no ROI.")
    edges = np.round(np.cumsum([0] + [part[-1] for part in parts]) * n_rois / 450).astype(int)
    labels, networks, families = [], [], []
    for (pattern, network, family, _), count in zip(parts, np.diff(edges).tolist(), strict=True):
        labels += [pattern.format(i + 1) for i in range(count)]
        networks += [network] * count
        families += [FAMILIES.index(family)] * count
    return Atlas(tuple(labels), tuple(networks), np.array(families))


def make_group_fc(atlas: Atlas, rng: np.random.Generator) -> np.ndarray:
    """Return a model of group FC, ``[R, R]`` correlations: networks inside families inside a whole.

    Each ROI is a sum of what all share, what its family and its network share, eight random
    patterns that make ROIs differ smoothly, and what it has alone.
    """
    n_rois = len(atlas.labels)
    _, network = np.unique(atlas.networks, return_inverse=True)
    loadings = np.concatenate(
        [
            np.full((n_rois, 1), 0.4),
            0.45 * atlas.indicator,
            0.4 * np.eye(network.max() + 1)[network],
            rng.normal(0, 0.4 / np.sqrt(8), (n_rois, 8)),
        ],
        axis=1,
    )
    loadings = np.concatenate([loadings, 0.5 * np.eye(n_rois)], axis=1)
    loadings *= rng.uniform(0.8, 1.2, loadings.shape)
    loadings /= np.linalg.norm(loadings, axis=1, keepdims=True)
    return loadings @ loadings.T


def brainspace_group_fc(atlas: Atlas, rng: np.random.Generator) -> np.ndarray:
    """Return ``[R, R]`` correlations whose cortex is real: the group FC that BrainSpace ships.

    It is the mean over HCP participants (Vos de Wael et al., 2018) in Schaefer-400, 7-network
    order, whose families have the sizes and order of this atlas. The 50 subcortical ROIs are
    modelled: a part that they share, a random mixture of cortical families, and a part of their
    own. An atlas of 150 or 90 ROIs has the middle one of every three or five of these 450, which
    is of the family that :func:`make_atlas` gives it.

    Raises:
        UserError: if the atlas is of another size.
    """
    n_rois = len(atlas.labels)
    if n_rois not in BRAINSPACE_SIZES:
        raise UserError(
            f"The FC of brainspace is that of n_rois 450, or of every third or fifth of its ROIs "
            f"(150, 90), not {n_rois}. Use the model FC (--group_fc model)."
        )
    from brainspace.datasets import load_group_fc  # here, because importing it takes seconds

    cortex = load_group_fc("schaefer", scale=400)
    whole = make_atlas(450)
    sources = whole.indicator[50:, 1:] / whole.indicator[50:, 1:].sum(0)  # [400, 7] family means
    weights = rng.dirichlet(np.ones(7), size=50) @ sources.T  # [50, 400]
    weights /= np.sqrt(np.einsum("ij,jk,ik->i", weights, cortex, weights))[:, None]
    own = np.concatenate([np.full((50, 1), np.sqrt(0.25)), np.sqrt(0.5) * np.eye(50)], axis=1)
    to_rois = np.concatenate([np.sqrt(0.25) * weights, np.eye(400)])
    fc = to_rois @ cortex @ to_rois.T
    fc[:50, :50] += own @ own.T
    every = 450 // n_rois
    return fc[every // 2 :: every, every // 2 :: every]


GROUP_FC = {"model": make_group_fc, "brainspace": brainspace_group_fc}


def fc_to_mixing(fc: np.ndarray) -> np.ndarray:
    """Return mixing ``[R, R]`` with ``mixing @ mixing.T == fc``, for correlations fc."""
    values, vectors = np.linalg.eigh(fc)
    return vectors * np.sqrt(np.clip(values, 0, None))


def personal_mixing(mixing: np.ndarray, atlas: Atlas, gain: np.ndarray) -> np.ndarray:
    """Return one person's mixing: to every ROI of family a, gain[a, b] x the mean of b is added.

    Rows keep unit norm, so ``gain`` [families, families] changes correlations, not variances.
    """
    member = atlas.indicator
    means = (member / member.sum(0)).T @ mixing  # [families, R]
    changed = mixing + member @ (gain @ means)
    return changed / np.linalg.norm(changed, axis=1, keepdims=True)


def bold_noise(rng: np.random.Generator, n: int, frames: int, tr: float) -> np.ndarray:
    """Return [n, frames] float32 of unit variance with the spectrum of cleaned BOLD at this TR."""
    length = scipy.fft.next_fast_len(
        frames + round(20 / tr), real=True
    )  # the FFT would make a loop
    frequency = scipy.fft.rfftfreq(length, tr)
    power = 1 / (1 + (frequency / _KNEE) ** 2) + _FLOOR
    power[frequency < _HIGH_PASS] = 0
    amplitude = np.sqrt(power * length**2 / (4 * power.sum())).astype(np.float32)
    spectrum = rng.standard_normal((n, 2 * frequency.size), dtype=np.float32).view(np.complex64)
    return scipy.fft.irfft(spectrum * amplitude, length, overwrite_x=True)[:, :frames]


def simulate_run(
    rng: np.random.Generator, mixing: np.ndarray, frames: int, tr: float
) -> np.ndarray:
    """Return one run ``[R, frames]``, float32, unit variance, whose FC is ``mixing @ mixing.T``."""
    noise = bold_noise(rng, mixing.shape[1], frames, tr)
    return mixing.astype(np.float32) @ noise


@dataclass(frozen=True)
class Population:
    """What all people share: atlas, mixing of the group FC, and the scale of each ROI.

    Signals are near zero-mean as after high-pass filtering, in arbitrary units whose size differs
    between ROIs: what per-ROI robust scaling is for.
    """

    atlas: Atlas
    mixing: np.ndarray  # [R, R]
    sd: np.ndarray  # [R, 1]
    offset: np.ndarray  # [R, 1]

    @classmethod
    def draw(cls, n_rois: int, group_fc: str, seed: int) -> "Population":
        """Draw a population; ``group_fc`` is "model" or "brainspace" (450, 150 or 90 ROIs)."""
        atlas = make_atlas(n_rois)
        mixing = fc_to_mixing(GROUP_FC[group_fc](atlas, np.random.default_rng(seed)))
        rng = np.random.default_rng([seed, 1])  # of its own: the scale is the same with either FC
        sd = 50 * rng.lognormal(0, 0.3, (n_rois, 1))
        return cls(atlas, mixing, sd, rng.normal(0, 25, (n_rois, 1)))

    def run(self, rng: np.random.Generator, gain: np.ndarray, frames: int, tr: float) -> np.ndarray:
        """Return a run ``[R, frames]`` of a person with this gain (see ``personal_mixing``)."""
        mixing = personal_mixing(self.mixing, self.atlas, gain)
        return simulate_run(rng, self.sd * mixing, frames, tr) + self.offset.astype(np.float32)
