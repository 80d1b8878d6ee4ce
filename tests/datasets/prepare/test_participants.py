"""Participants to import: lists of ids and participants tables that fit, and those that do not."""

import pickle

import pytest

from src.datasets.prepare.participants import Assignment, read_ids
from src.utils.errors import UserError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id\tage\n1\t2\n", r"participant_id.*Did you mean 'id'|no tab-separated participant_id"),
        ("participant_id\n1\n1\n", "'1' has more than one row"),
        ("participant_id\tsplit\n1\tvalidation\n", "Did you mean 'valid'"),
        ("participant_id\tsession\n1\t2\n", "rename column session"),
        ("", "No columns"),
    ],
)
def test_participants_table_that_does_not_fit(tmp_path, content, message):
    (tmp_path / "p.tsv").write_text(content)
    with pytest.raises(UserError, match=message):
        Assignment.load(tmp_path / "p.tsv", valid=0.1, test=0.1, seed=0)


def test_ids_are_text_never_pickle(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("# pilot\n1000\n\n1001  # second\n")
    assert read_ids(path) == ["1000", "1001"]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(["1000", "1001"], protocol=protocol))
        with pytest.raises(UserError, match="pickle"):
            read_ids(path)
    for content, message in (
        ("1\n2\n1\n", "lines 1 and 3"),
        ("1 2\n", "line 1"),
        ("../1\n", "line 1"),
        ("# none\n", "no id"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_ids(path)
    with pytest.raises(UserError, match="No such file"):
        read_ids(tmp_path / "missing.txt")
