"""Files that replace others whole."""

import os
from pathlib import Path

import pytest

from src.utils.files import replacing, write_text


def test_an_error_names_the_file_and_not_its_temporary(tmp_path: Path):
    """Neither may be opened nor removed below a file, as on a disk that cannot be written."""
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "features.npz"
    with pytest.raises(NotADirectoryError) as raised, replacing(path):
        pass
    assert raised.value.filename == str(path)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_are_those_of_any_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "new", "text")
        write_text(tmp_path / "new", "other text")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == mode
