"""What a run writes about itself: log file, CSV, TensorBoard, its revision."""

import csv
import logging
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

ROOT = Path(__file__).resolve().parents[2]
FORMAT = "%(asctime)s %(levelname)-7s %(message)s"


def setup_logging(folder: str | Path | None = None, main: bool = True) -> None:
    """Log to stderr and, with ``folder``, to its ``log.txt``; other ranks report errors only."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if folder is not None and main:
        Path(folder).mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(Path(folder) / "log.txt"))
    logging.basicConfig(
        level=logging.INFO if main else logging.ERROR,
        format=FORMAT,
        datefmt="%Y-%m-%d %H:%M:%S",
        handlers=handlers,
        force=True,
    )


def git_revision() -> str:
    """Commit of this checkout, with ``+changes`` when tracked files differ from it."""
    if not (ROOT / ".git").exists():
        return "unknown (not a git checkout)"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    changes = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + ("+changes" if changes else "")


class CSVLogger:
    """Rows of a CSV file, on disk as soon as they are written; an old file is continued.

    When continuing, rows from ``resume_key >= resume_at`` are dropped first: they were written
    after the checkpoint the run resumes from, and are about to be written again.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Sequence[str],
        resume_key: str | None = None,
        resume_at: int = 0,
    ) -> None:
        self.path, self.columns = Path(path), list(columns)
        kept = []
        if resume_key is not None and self.path.exists():
            with self.path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row[resume_key]) < resume_at]
        self._file = self.path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, self.columns, restval="")
        self._writer.writeheader()
        self._writer.writerows({name: row.get(name, "") for name in self.columns} for row in kept)
        self._file.flush()

    def write(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Append rows; columns a row does not name stay empty."""
        self._writer.writerows(rows)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RunLog:
    """The CSV and TensorBoard of one run; every method does nothing but on the main process."""

    def __init__(
        self,
        folder: str | Path,
        name: str,
        columns: Sequence[str],
        main: bool,
        resume_key: str | None = None,
        resume_at: int = 0,
    ) -> None:
        self.main = main
        if not main:
            return
        self.csv = CSVLogger(Path(folder) / name, columns, resume_key, resume_at)
        self.board = SummaryWriter(Path(folder) / "tensorboard", purge_step=resume_at or None)

    def rows(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Append rows to the CSV."""
        if self.main:
            self.csv.write(rows)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write values to TensorBoard."""
        if self.main:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        if self.main:
            self.csv.close()
            self.board.close()
