"""Columns that name families are found, however they are spelt, or asked about."""

import numpy as np
import pytest

from downstream_tasks.cohort.examples import load_cohort
from downstream_tasks.cohort.families import family_columns
from downstream_tasks.config import DataConfig
from src.datasets.clip_input import ClipInput
from src.datasets.folder import DataFolder
from src.datasets.folder.writer import FolderWriter
from src.utils.errors import UserError

DEFAULT = DataConfig().disjoint


@pytest.mark.parametrize("name", ["Family_ID", "famid", "FAMILY", "family-id"])
def test_a_family_column_that_is_spelt_otherwise_is_used(name):
    assert family_columns(["participant_id", name, "Mother_ID"], DEFAULT, "x") == (name,)


def test_the_column_by_its_own_name_needs_no_other():
    assert family_columns(["family_id", "Family_ID", "twin"], DEFAULT, "x") == ("family_id",)
    assert family_columns(["age", "sex", "family_history"], DEFAULT, "x") == ("family_id",)


@pytest.mark.parametrize("name", ["mother_id", "Father_ID", "Zygosity", "twin", "sibling_pair"])
def test_other_signs_of_relatives_are_asked_about(name):
    with pytest.raises(UserError, match=rf"but {name}: .*data\.disjoint=\[{name}\].*=\[\]"):
        family_columns(["participant_id", name], DEFAULT, "x")
    assert family_columns(["participant_id", name], (), "x") == ()
    assert family_columns(["participant_id", name], (name,), "x") == (name,)


def test_several_family_columns_are_asked_about():
    with pytest.raises(UserError, match="but Family_ID, famid:"):
        family_columns(["Family_ID", "famid"], DEFAULT, "x")


def test_relatives_of_a_folder_stay_together(tmp_path):
    with FolderWriter(tmp_path, roi_labels=list("ab"), atlas="t", provenance={}) as writer:
        for i in range(4):
            writer.add_run(
                np.random.default_rng(i).normal(size=(2, 20)), participant_id=f"p{i}", tr=2.0,
                age=20.0 + i, Family_ID=f"f{i // 2}",
            )  # fmt: skip
    data = DataConfig(data_path=str(tmp_path), target="age", type="regression")
    clip = ClipInput(crop_size=(2, 8)).completed()
    cohort = load_cohort(DataFolder(tmp_path), data, clip, 4)
    assert cohort.examples["group"].tolist() == ["p0", "p0", "p2", "p2"]
    assert cohort.disjoint == ("Family_ID",)
