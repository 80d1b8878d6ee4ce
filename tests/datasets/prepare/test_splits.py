"""Splits by person: seeded, exact or stable, families together."""

import pandas as pd
import pytest

from src.datasets.prepare.splits import split_by_count, split_by_hash
from src.utils.errors import UserError


def test_split_by_count_keeps_families_and_ignores_order():
    people = [f"p{i}" for i in range(40)]
    family = {person: f"f{i // 2}" for i, person in enumerate(people)}
    split = split_by_count(people, valid=8, test=9, seed=1, family=family)
    assert split == split_by_count(people[::-1], valid=8, test=9, seed=1, family=family)
    assert split != split_by_count(people, valid=8, test=9, seed=2, family=family)
    assert all(split[f"p{i}"] == split[f"p{i + 1}"] for i in range(0, 40, 2))
    counts = pd.Series(split).value_counts()
    assert counts.to_dict() == {"train": 22, "test": 10, "valid": 8}
    with pytest.raises(UserError, match="too few"):
        split_by_count(people, valid=20, test=20, seed=0)


def test_split_by_hash_has_the_fractions():
    splits = [split_by_hash(str(i), valid=0.1, test=0.2, seed=0) for i in range(5000)]
    share = pd.Series(splits).value_counts(normalize=True)
    assert abs(share["valid"] - 0.1) < 0.02
    assert abs(share["test"] - 0.2) < 0.02
    assert splits != [split_by_hash(str(i), valid=0.1, test=0.2, seed=1) for i in range(5000)]
