"""Write a labelled synthetic cohort, to rehearse an evaluation before one has access to the data.

    python scripts/make_synthetic_cohort.py hca --out data/synthetic_hca

People, runs and class balance are like those of a real cohort; sex, age, diagnosis and the rest act
on functional connectivity (FC) in known directions with a chosen strength. Nothing else about the
people is real, and a score on such a cohort says only that the evaluation works.

An effect is a direction in family-to-family gains (`TRAITS`; see `personal_mixing`), along which
people vary anyway, with SD 1. `--effect E` moves the two classes E x size SDs apart (Cohen's d),
or a person by E x size per SD of a continuous trait. Sizes are such that with E = 1, the default,
linear models on FC score about what method 7 reports; with 0 there is nothing to find.
"""

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.datasets.folder import DataFolder
from src.datasets.folder.writer import FolderWriter
from src.datasets.prepare.population import FAMILIES, FAMILY_SPREAD, GROUP_FC, Population
from src.datasets.prepare.splits import split_by_count
from src.datasets.prepare.synthetic import already_made
from src.utils.errors import UserError, run_main
from src.utils.progress import progress_bar

HERITABLE = 0.4  # share of the variance between people that a family has in common
SITE_SPREAD = 0.3  # SD of what a site adds to all its people, relative to that between people


@dataclass(frozen=True)
class Trait:
    """A column, its distribution, and its effect on FC.

    Attributes:
        size: effect relative to `--effect`.
        gains: (to, from, sign): how much more, or less, of one family's signal reaches another.
        classes: (negative, positive) labels, or none for a continuous trait.
        mean, sd, low, high: of a continuous trait, in its unit.
    """

    size: float
    gains: tuple[tuple[str, str, int], ...]
    classes: tuple[str, str] | None = None
    mean: float = 0.0
    sd: float = 1.0
    low: float = -np.inf
    high: float = np.inf

    @property
    def direction(self) -> np.ndarray:
        """Gains [families, families] of unit norm."""
        gain = np.zeros((len(FAMILIES), len(FAMILIES)))
        for to, source, sign in self.gains:
            gain[FAMILIES.index(to), FAMILIES.index(source)] = sign
        return gain / np.linalg.norm(gain)


TRAITS = {
    "sex": Trait(
        3.5,
        (("Default", "Default", 1), ("SomMot", "Vis", -1), ("Subcortex", "SomMot", -1)),
        classes=("M", "F"),
    ),
    # The networks of older people are less segregated.
    "age": Trait(
        2.2,
        (("SomMot", "SomMot", -1), ("Cont", "Cont", -1), ("Default", "SalVentAttn", 1)),
    ),
    "neuroticism": Trait(  # NEO-FFI
        0.95, (("Limbic", "Subcortex", 1), ("SalVentAttn", "Limbic", 1)), None, 17, 7.5, 0, 48
    ),
    "flanker": Trait(  # NIH toolbox
        0.85, (("Cont", "DorsAttn", 1), ("DorsAttn", "DorsAttn", 1)), None, 100, 10, 60, 140
    ),
    "diagnosis": Trait(
        2.6, (("Default", "Limbic", -1), ("Subcortex", "Default", -1)), ("NC", "MCI")
    ),
    "amyloid": Trait(
        2.0, (("Default", "Cont", -1), ("Default", "Subcortex", -1)), ("negative", "positive")
    ),
    "conversion": Trait(
        2.0, (("Limbic", "Default", -1), ("Default", "Subcortex", -1)), ("stable", "converter")
    ),
    "depression": Trait(
        2.0, (("Default", "Limbic", 1), ("Cont", "SalVentAttn", -1)), ("no", "yes")
    ),
}


@dataclass(frozen=True)
class Preset:
    """A cohort like a real one.

    Attributes:
        n: people.
        tr: repetition time, seconds.
        frames: of a run.
        age: mean, SD, youngest, oldest.
        positive: share of the second class, by trait; these are the cohort's columns.
        scores: continuous columns.
        known: trait -> number of people with a value; the others have n/a.
        note: where the numbers come from.
    """

    n: int
    tr: float
    frames: int
    age: tuple[float, float, float, float]
    positive: dict[str, float]
    scores: tuple[str, ...] = ()
    known: dict[str, int] = dataclasses.field(default_factory=dict)
    note: str = ""


PRESETS = {
    "hca": Preset(
        656,
        0.8,
        478,
        (60, 15, 36, 100),
        {"sex": 0.56},
        ("neuroticism", "flanker"),
        note="HCP-Aging: n, TR and frames as in method 7, ages and sex ratio of the study",
    ),
    "adni": Preset(
        189,
        3.0,
        197,
        (73, 7, 55, 95),
        {"sex": 0.5, "diagnosis": 0.76, "amyloid": 0.55},
        known={"amyloid": 100},
        note="ADNI: n as in method 7, the basic protocol of ADNI-3; MCI share from the published "
        "accuracy and F1, which about three quarters of positives explain",
    ),
    "macc": Preset(
        539,
        2.3,
        180,
        (72, 8, 50, 95),
        {"sex": 0.55, "diagnosis": 0.5},
        note="MACC: n as in method 7; TR, frames, ages and class balance are plausible, not known",
    ),
    "ukb": Preset(
        1000,
        0.735,
        490,
        (64, 7.5, 44, 83),
        {"sex": 0.53},
        note="UK Biobank: TR and frames as in method 7, ages and sex ratio of its imaging study",
    ),
    "oasis3": Preset(
        200,
        2.2,
        164,
        (71, 8, 45, 95),
        {"sex": 0.55, "conversion": 0.5},
        note="OASIS-3: its common resting-state protocol; n and class balance are chosen",
    ),
    "camcan": Preset(
        200,
        1.97,
        261,
        (54, 18, 18, 88),
        {"sex": 0.5, "depression": 0.5},
        note="CamCAN: its resting-state protocol and ages; n and class balance are chosen",
    ),
    "custom": Preset(
        200,
        2.0,
        200,
        (60, 15, 20, 95),
        dict.fromkeys(("sex", "diagnosis", "amyloid", "conversion", "depression"), 0.5),
        ("neuroticism", "flanker"),
        note="every trait",
    ),
}


def draw_people(
    preset: Preset, rng: np.random.Generator, *, families: bool, sites: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Draw who the people are.

    Returns:
        The columns of participants.tsv, one row per person; and the direction in which the traits
        of each move their gains, [n, families, families], per unit of effect.
    """
    n = preset.n
    columns: dict[str, Any] = {"participant_id": [f"synth-{i:05d}" for i in range(n)]}
    if families:
        sizes = rng.choice([1, 2, 3], size=n, p=[0.7, 0.25, 0.05])
        columns["family_id"] = [f"family-{i:05d}" for i in np.repeat(np.arange(n), sizes)[:n]]
    if sites > 1:
        columns["site"] = [f"site-{i + 1}" for i in rng.integers(sites, size=n)]
    shift = np.zeros((n, len(FAMILIES), len(FAMILIES)))
    for name in ("age", *preset.scores, *preset.positive):
        trait = TRAITS[name]
        if trait.classes:
            positive = np.zeros(n, dtype=bool)
            positive[rng.permutation(n)[: round(n * preset.positive[name])]] = True
            standard = positive - 0.5
            values = pd.Series(np.where(positive, trait.classes[1], trait.classes[0]))
        else:
            mean, sd, low, high = (
                preset.age if name == "age" else (trait.mean, trait.sd, trait.low, trait.high)
            )
            values = pd.Series(np.clip(rng.normal(mean, sd, n), low, high).round(1))
            standard = (values.to_numpy() - mean) / sd
        if name in preset.known:
            values[rng.permutation(n)[preset.known[name] :]] = None
        columns[name] = values
        shift += trait.size * standard[:, None, None] * trait.direction
    return pd.DataFrame(columns), shift


def draw_gains(
    people: pd.DataFrame, shift: np.ndarray, effect: float, rng: np.random.Generator
) -> np.ndarray:
    """Return each person's gains [n, families, families]: own, family's, site's and traits'."""
    gains = rng.normal(size=shift.shape)
    for column, common, own in (
        ("family_id", np.sqrt(HERITABLE), np.sqrt(1 - HERITABLE)),
        ("site", SITE_SPREAD, 1.0),
    ):
        if column in people:
            number, _ = pd.factorize(people[column])
            shared = rng.normal(size=(number.max() + 1, *shift.shape[1:]))
            gains = own * gains + common * shared[number]
    return FAMILY_SPREAD * (gains + effect * shift)


def make_cohort(
    out: Path,
    preset: Preset,
    *,
    n_rois: int = 450,
    effect: float = 1.0,
    runs: int = 1,
    families: bool = False,
    sites: int = 1,
    group_fc: str | None = None,
    seed: int = 0,
) -> DataFolder:
    """Write a cohort; the same arguments give the same bytes.

    Splits are 6:2:2 by person, families together.

    Args:
        out: the folder. If it was made with the same arguments it is left as it is.
        preset: what the cohort is like.
        n_rois: number of ROIs; at 450 the order is the published one.
        effect: strength of all effects, see the top of this file.
        runs: of each person.
        families, sites: whether to add family_id; number of sites, more than 1 adds site.
        group_fc: "model" or "brainspace"; None is the real cortical FC of BrainSpace at 450 ROIs,
            the model otherwise.

    Raises:
        UserError: on numbers that are impossible, or if another data set is there.
    """
    for name, value, least in (
        ("n", preset.n, 5),
        ("frames", preset.frames, 2),
        ("effect", effect, 0),
        ("runs", runs, 1),
        ("sites", sites, 1),
    ):
        if value < least:
            raise UserError(f"--{name} {value}: expected {least} or more.")
    if preset.tr <= 0:
        raise UserError(f"--tr {preset.tr}: expected a positive number of seconds.")
    group_fc = group_fc or ("brainspace" if n_rois == 450 else "model")
    provenance = {
        "source": "simulated by scripts/make_synthetic_cohort.py; not data of people",
        "preset": {**dataclasses.asdict(preset), "age": list(preset.age)},
        "settings": {
            **{"n_rois": n_rois, "effect": effect, "runs": runs, "families": families},
            **{"sites": sites, "group_fc": group_fc, "seed": seed},
        },
    }
    provenance["preset"]["scores"] = list(preset.scores)  # as JSON gives it back
    if already_made(out, provenance):
        print(f"{out} is there already, nothing to do.")
        return DataFolder(out)
    # The population of src.datasets.prepare.synthetic, so that a model trained on that fits.
    population = Population.draw(n_rois, group_fc, seed=0)
    rng = np.random.default_rng([seed, 0])
    people, shift = draw_people(preset, rng, families=families, sites=sites)
    gains = draw_gains(people, shift, effect, rng)
    ids = people["participant_id"]
    fifth = max(1, round(preset.n / 5))
    family = dict(zip(ids, people["family_id"], strict=True)) if families else None
    split = split_by_count(ids, valid=fifth, test=fifth, seed=seed, family=family)
    with FolderWriter(
        out,
        roi_labels=population.atlas.labels,
        atlas=f"synthetic-{n_rois}",
        provenance=provenance,
    ) as writer:
        records = people.to_dict("records")
        for i, record in enumerate(progress_bar(records, desc="people", unit="person")):
            noise = np.random.default_rng([seed, 1, i])
            for run in range(runs):
                writer.add_run(
                    population.run(noise, gains[i], preset.frames, preset.tr),
                    run=f"{run + 1:02d}",
                    tr=preset.tr,
                    split=split[record["participant_id"]],
                    **record,
                )
    return DataFolder(out)


def main() -> None:
    """Command line of this script."""
    presets = "\n".join(
        f"  {name:7} {p.n} people, TR {p.tr} s, {p.frames} frames; "
        f"{', '.join(('age', *p.scores, *p.positive))}\n          {p.note}"
        for name, p in PRESETS.items()
    )
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"presets:\n{presets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", choices=PRESETS, help="which cohort it is to be like")
    parser.add_argument("--out", type=Path, help="folder (default data/synthetic_PRESET)")
    parser.add_argument("--n", type=int, help="people (default: the preset's)")
    parser.add_argument("--n_rois", type=int, default=450, help="ROIs (default 450)")
    parser.add_argument("--frames", type=int, help="frames of a run (default: the preset's)")
    parser.add_argument("--tr", type=float, help="repetition time, seconds (default: the preset's)")
    parser.add_argument("--runs", type=int, default=1, help="runs of each person (default 1)")
    parser.add_argument("--effect", type=float, default=1.0, help="strength of effects (default 1)")
    parser.add_argument("--families", action="store_true", help="add family_id")
    parser.add_argument("--sites", type=int, default=1, help="add site, with so many (default 1)")
    parser.add_argument(
        "--group_fc", choices=GROUP_FC, help="default: brainspace at 450 ROIs, otherwise model"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    args = vars(parser.parse_args())
    name, out = args.pop("preset"), args.pop("out")
    preset = PRESETS[name]
    changes = {key: args.pop(key) for key in ("n", "frames", "tr")}
    preset = dataclasses.replace(
        preset, **{key: value for key, value in changes.items() if value is not None}
    )
    folder = make_cohort(out or Path("data") / f"synthetic_{name}", preset, **args)
    people = folder.runs.drop_duplicates("participant_id")
    print(
        f"{folder.path}: {len(people)} people, {len(folder.runs)} runs x {folder.n_rois} ROIs x "
        f"{preset.frames} frames, TR {preset.tr} s, effect {args['effect']}"
    )
    for column in ("age", *preset.scores, *preset.positive):
        values = people[column]
        if column in preset.positive:
            text = ", ".join(f"{label} {count}" for label, count in values.value_counts().items())
        else:
            text = f"mean {values.mean():.1f}, SD {values.std():.1f}"
        print(f"    {column}: {text}, missing {values.isna().sum()}")


if __name__ == "__main__":
    run_main(main)
