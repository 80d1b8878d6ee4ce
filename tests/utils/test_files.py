"""Files that replace others whole."""

from pathlib import Path

import pytest

from src.utils.files import replacing


def test_an_error_names_the_file_and_not_its_temporary(tmp_path: Path):
    """Neither may be opened nor removed below a file, as on a disk that cannot be written."""
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "features.npz"
    with pytest.raises(NotADirectoryError) as raised, replacing(path):
        pass
    assert raised.value.filename == str(path)
