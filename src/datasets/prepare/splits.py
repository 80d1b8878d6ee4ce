"""Which people go to which split, decided by a seed and by nothing else.

Two rules: exact counts for a data set that is written once (``split_by_count``), and a rule that
looks at one person at a time for a data set that grows (``split_by_hash``).
"""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from ...utils.errors import UserError


def split_by_count(
    people: Iterable[str],
    *,
    valid: int,
    test: int,
    seed: int,
    family: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Draw ``test`` people, then ``valid`` people; the others are for training.

    Args:
        people: participant ids; their order does not matter, repeats count once.
        valid, test: number of people.
        seed: of the draw.
        family: person -> family. Families stay together, so a split may exceed its number by the
            members of its last family.

    Returns:
        person -> "train", "valid" or "test".

    Raises:
        UserError: if nobody would be left for training.
    """
    family = family or {}
    members: dict[str, list[str]] = {}
    for person in sorted(set(people)):
        members.setdefault(family.get(person, person), []).append(person)
    n_people = sum(map(len, members.values()))
    order = iter(np.random.default_rng(seed).permutation(sorted(members)).tolist())
    split: dict[str, str] = {}
    for name, wanted in (("test", test), ("valid", valid)):
        taken = 0
        while taken < wanted and (group := next(order, None)) is not None:
            split.update(dict.fromkeys(members[group], name))
            taken += len(members[group])
    for group in order:
        split.update(dict.fromkeys(members[group], "train"))
    if "train" not in split.values():
        raise UserError(
            f"{n_people} people are too few: {test} for test and {valid} for validation leave "
            "nobody for training."
        )
    return split


def split_by_hash(person: str, *, valid: float, test: float, seed: int) -> str:
    """Return the split of one person from a hash of seed and id.

    It depends on nothing else: people added later, in any order and by any worker, leave the split
    of the others as it is. The fractions hold on average (40,000 people: within about .005).
    """
    digest = hashlib.sha256(f"{seed}:{person}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if place < test else "valid" if place < test + valid else "train"
