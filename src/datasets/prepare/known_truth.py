"""People whose individual differences are known, each kind with a trait that depends on it alone.

    python -m src.datasets.prepare.known_truth --train 64 --out data/truth_64
    python -m src.datasets.prepare.known_truth --train 0 --valid 0 --test 400 --out data/truth_test

A run is ``x_t = sd * M (g_t * s_t)``, frame by frame. The mixing ``M`` [R, R] has rows of norm 1,
and ``M M^T`` is the person's FC. The sources follow

    s_t = R (phi * s_{t-1} + sqrt(1 - phi^2) * e_t),        e_t ~ N(0, I),

with R orthogonal: if the covariance of ``s_{t-1}`` is I, that of ``s_t`` is I, whatever R and
``phi``. The gains ``g_t`` are ``sqrt(1 +- depth)``, of opposite sign in two halves of the families,
and exchange signs with a probability per frame; their mean square is 1. So of four traits

- ``static`` changes M, and with it FC;
- ``dynamics`` changes R and ``phi``: persistence and who leads whom, not FC;
- ``switching`` changes how often the gains switch, not FC and, but for little, not the dynamics;
- ``amplitude`` changes ``sd``.

Each is a direction in a space of differences between families in which people vary anyway. Its
column is ``sqrt(a) * latent + sqrt(1 - a) * noise``, where ``a`` is the attainable R2. The latent
is a column too, for the oracle: no use of the run predicts the trait better.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.linalg import expm
from scipy.special import expit

from ...utils.arguments import HelpFormatter
from ...utils.errors import PACKAGE, UserError, run_main
from ...utils.progress import progress_bar
from ..folder import DataFolder
from ..folder.writer import FolderWriter
from .population import FAMILIES, FAMILY_SPREAD, Population, personal_mixing
from .synthetic import already_made

TRAITS = ("static", "dynamics", "switching", "amplitude")
LATENT = "_latent"  # the column TRAIT_latent is what the run depends on

# Means and SDs over people; along the direction of a trait the SD is ``effect`` times as large.
_PERSISTENCE, _PERSISTENCE_SPREAD = 1.7, 0.3  # logit of phi; phi is .84 on average
_FLOW, _FLOW_SPREAD = 0.2, 0.1  # radians per frame, by which one family follows another
_SWITCHES, _SWITCHES_SPREAD = np.log(0.08), 0.6  # log probability per frame
_DEPTH = 0.6  # power of one half of the families is four times that of the other
_AMPLITUDE_SPREAD = 0.15  # of the log SD of a family

# Where the people of each split begin: nobody is in two splits, whatever their sizes.
_FIRST = {"train": 0, "valid": 1_000_000, "test": 2_000_000}


@dataclass(frozen=True)
class Person:
    """What the runs of one person have in common, and the latent of each trait."""

    mixing: np.ndarray  # [R, R], M
    rotation: np.ndarray  # [R, R], R
    persistence: np.ndarray  # [R], phi
    sign: np.ndarray  # [R], of the gains of the sources; one half of the families against the other
    switches: float  # probability per frame
    sd: np.ndarray  # [R]
    latent: dict[str, float]

    def run(self, rng: np.random.Generator, frames: int) -> np.ndarray:
        """Return a run ``[R, frames]``, zero on average, whose covariance is that of M and sd."""
        switched = np.cumsum(rng.random(frames) < self.switches) + rng.integers(2)
        gains = np.sqrt(1 + _DEPTH * self.sign[:, None] * (1 - 2 * (switched % 2)))
        noise = rng.standard_normal((frames, len(self.sd)))
        source, sources = noise[0], [noise[0]]
        innovation = np.sqrt(1 - self.persistence**2)
        for fresh in noise[1:]:
            source = self.rotation @ (self.persistence * source + innovation * fresh)
            sources.append(source)
        return self.sd[:, None] * (self.mixing @ (gains * np.stack(sources, axis=1)))


@dataclass(frozen=True)
class KnownTruth:
    """The population: its atlas and group FC, what all people share, and the traits' directions."""

    population: Population
    mixing: np.ndarray  # [R, R], symmetric: source r is mostly of ROI r
    persistence: np.ndarray  # [R], logit
    flow: np.ndarray  # [families, families], above the diagonal
    directions: dict[str, np.ndarray]  # of unit norm
    seed: int
    effect: float

    @classmethod
    def draw(cls, n_rois: int, group_fc: str, seed: int, effect: float) -> "KnownTruth":
        """Draw the population; directions are random, and none is fitted to a method."""
        population = Population.draw(n_rois, group_fc, seed)
        values, vectors = np.linalg.eigh(population.mixing @ population.mixing.T)
        rng = np.random.default_rng([seed, 3])
        n = len(FAMILIES)
        spaces = {"static": n * n, "dynamics": n + n * (n - 1) // 2, "amplitude": n}
        directions = {name: rng.standard_normal(size) for name, size in spaces.items()}
        return cls(
            population,
            mixing=(vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T,
            persistence=_PERSISTENCE + _PERSISTENCE_SPREAD * rng.standard_normal(n_rois),
            flow=_FLOW * rng.standard_normal(n * (n - 1) // 2),
            directions={name: d / np.linalg.norm(d) for name, d in directions.items()},
            seed=seed,
            effect=effect,
        )

    def person(self, index: int) -> Person:
        """Return person ``index``: the same whoever else is drawn."""
        rng = np.random.default_rng([self.seed, 4, index])
        latent, place = {}, {}
        for name, direction in self.directions.items():
            where = rng.standard_normal(direction.size)
            latent[name] = float(direction @ where)
            place[name] = where + (self.effect - 1) * latent[name] * direction
        latent["switching"] = float(rng.standard_normal())
        atlas, n = self.population.atlas, len(FAMILIES)
        persistence, flow = np.split(place["dynamics"], [n])
        return Person(
            mixing=personal_mixing(
                self.mixing, atlas, FAMILY_SPREAD * place["static"].reshape(n, n)
            ),
            rotation=family_rotation(atlas.indicator, self.flow + _FLOW_SPREAD * flow),
            persistence=expit(
                self.persistence + _PERSISTENCE_SPREAD * atlas.indicator @ persistence
            ),
            sign=np.where(atlas.families < n // 2, 1.0, -1.0),
            switches=float(np.exp(_SWITCHES + _SWITCHES_SPREAD * latent["switching"])),
            sd=self.population.sd[:, 0]
            * np.exp(_AMPLITUDE_SPREAD * atlas.indicator @ place["amplitude"]),
            latent={name: latent[name] for name in TRAITS},
        )


def family_rotation(indicator: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Return the orthogonal ``[R, R]`` that turns the mean of one family towards that of another.

    Args:
        indicator: ``[R, families]``, see :class:`~.population.Atlas`.
        angles: in radians, one for each pair of families, in the order of ``np.triu_indices``.
    """
    means = indicator / np.sqrt(indicator.sum(0))  # orthonormal
    skew = np.zeros((means.shape[1],) * 2)
    skew[np.triu_indices_from(skew, 1)] = angles
    turn = expm(skew - skew.T)
    return np.eye(len(means)) + means @ (turn - np.eye(len(turn))) @ means.T


def write_known_truth(
    out: Path,
    *,
    train: int,
    valid: int = 16,
    test: int = 0,
    n_rois: int = 90,
    frames: int = 256,
    tr: float = 2.0,
    group_fc: str = "brainspace",
    effect: float = 2.0,
    attainable: float = 0.7,
    seed: int = 0,
) -> DataFolder:
    """Write a data-set folder with a column for each of :data:`TRAITS`, and for its latent.

    The people of a split are its first ones: more of them change nobody, and the same seed gives
    the same people of a split to every folder.

    Args:
        out: the folder. If it was made with the same arguments it is left as it is.
        train, valid, test: people of each split.
        n_rois, frames, tr, group_fc: as for :func:`~.synthetic.write_synthetic`.
        effect: SD over people along the direction of a trait / that along any other.
        attainable: R2 with which the latent predicts its trait.

    Raises:
        UserError: if another data set is there, or a number is impossible.
    """
    counts = {"train": train, "valid": valid, "test": test}
    if min(counts.values()) < 0 or sum(counts.values()) < 1:
        raise UserError(f"train, valid, test are {train}, {valid}, {test}: nobody to write.")
    if frames < 2 or tr <= 0:
        raise UserError(f"frames is {frames} and tr {tr}; expected 2 or more, and seconds above 0.")
    if effect < 0 or not 0 < attainable <= 1:
        raise UserError(
            f"effect is {effect} and attainable {attainable}; expected 0 or more, and above 0 to 1."
        )
    provenance = {
        "source": "simulated by src.datasets.prepare.known_truth; not data of people",
        "settings": {
            **{**counts, "n_rois": n_rois, "frames": frames, "tr": tr, "group_fc": group_fc},
            **{"effect": effect, "attainable": attainable, "seed": seed},
        },
    }
    if already_made(out, provenance):
        print(f"{out} is there already, nothing to do.")
        return DataFolder(out)
    truth = KnownTruth.draw(n_rois, group_fc, seed, effect)
    people = [(split, _FIRST[split] + i) for split, n in counts.items() for i in range(n)]
    with FolderWriter(
        out,
        roi_labels=truth.population.atlas.labels,
        atlas=f"synthetic-{n_rois}",
        provenance=provenance,
    ) as writer:
        for split, index in progress_bar(people, desc="people", unit="person"):
            person = truth.person(index)
            rng = np.random.default_rng([seed, 5, index])
            noise = rng.standard_normal(len(TRAITS)).tolist()
            weights = np.sqrt([attainable, 1 - attainable]).tolist()
            traits = {
                name: weights[0] * person.latent[name] + weights[1] * own
                for name, own in zip(TRAITS, noise, strict=True)
            }
            writer.add_run(
                person.run(rng, frames) + truth.population.offset,
                participant_id=f"truth-{index:07d}",
                tr=tr,
                split=split,
                **{name: round(value, 6) for name, value in traits.items()},
                **{name + LATENT: round(value, 6) for name, value in person.latent.items()},
            )
    return DataFolder(out)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PACKAGE}.datasets.prepare.known_truth",
        description="Write people whose FC, dynamics at equal FC, switching and amplitude differ "
        "in known ways, with a trait tied to each.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=64, help="people for pretraining")
    parser.add_argument("--valid", type=int, default=16, help="people for the learning monitors")
    parser.add_argument("--test", type=int, default=0, help="people of no pretraining")
    parser.add_argument("--n_rois", type=int, default=90, help="ROIs; brainspace: 450, 150 or 90")
    parser.add_argument("--frames", type=int, default=256, help="frames of a run")
    parser.add_argument("--tr", type=float, default=2.0, help="repetition time, seconds")
    parser.add_argument("--group_fc", choices=("brainspace", "model"), default="brainspace",
                        help="brainspace: real cortical FC")  # fmt: skip
    parser.add_argument("--effect", type=float, default=2.0, help="strength of the traits")
    parser.add_argument("--attainable", type=float, default=0.7, help="R2 of the oracle")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    args = vars(parser.parse_args())
    folder = write_known_truth(args.pop("out"), **args)
    print(
        f"{folder.path}: {len(folder.runs)} people x {folder.n_rois} ROIs x "
        f"{folder.frames[0]} frames, TR {folder.runs['tr'].iloc[0]} s"
    )


if __name__ == "__main__":
    run_main(main)
