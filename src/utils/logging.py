"""Records of a run: log file, CSV, TensorBoard, revision of the code."""

import csv
import io
import logging
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from .errors import UserError, as_user_error
from .files import naming, replacing

ROOT = Path(__file__).resolve().parents[2]
FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
_WAITING_RECORDS = 100


def setup_logging(folder: str | Path | None = None, main: bool = True) -> None:
    """Log to stderr and, with ``folder``, to its ``log.txt``; other ranks report errors only.

    What was logged before the folder was known goes to its log, too.
    """
    waiting = [h for h in logging.getLogger().handlers if isinstance(h, _Waiting)]
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    handlers[0].setFormatter(_TerminalFormatter(FORMAT, DATE_FORMAT))
    if folder is not None and main:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            handlers.append(_LogFile(Path(folder) / "log.txt"))
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}: {error.filename}); choose another "
                "folder for the run."
            ) from error
        handlers[1].setFormatter(logging.Formatter(FORMAT, DATE_FORMAT))
        for record in [record for handler in waiting for record in handler.records]:
            handlers[1].handle(record)
    elif folder is None:
        handlers.append(_Waiting())
    level = logging.INFO if main else logging.ERROR
    logging.basicConfig(level=level, handlers=handlers, force=True)


class _Waiting(logging.Handler):
    """Keeps the first records of a program that has no log file yet."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.records) < _WAITING_RECORDS:
            self.records.append(record)


class _LogFile(logging.FileHandler):
    """A log file whose failures end the program, where ``logging`` prints a traceback per line."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        if record.levelno < logging.ERROR:  # else an error is being reported, on stderr as well
            with naming(self.baseFilename):
                raise


class TensorBoard(SummaryWriter):
    """A writer whose failures reach the caller, at the latest when it is closed.

    TensorBoard writes in a thread, which would show the traceback of a full disk.
    """

    def __init__(self, folder: str | Path, purge_step: int | None = None) -> None:
        self._folder, self._hook = folder, threading.excepthook
        threading.excepthook = self._thread_failed
        with naming(folder):
            super().__init__(folder, purge_step=purge_step)

    def add_scalar(self, *args: Any, **options: Any) -> None:
        """As ``SummaryWriter`` does."""
        with naming(self._folder):
            super().add_scalar(*args, **options)

    def close(self) -> None:
        """Write what is waiting, and close."""
        with naming(self._folder):
            self.flush()
            super().close()
        threading.excepthook = self._hook

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        if as_user_error(failure.exc_value) is None:  # else it comes again, in the next call
            self._hook(failure)


class _TerminalFormatter(logging.Formatter):
    """An error that ends the program is the bare message; everything else has its time."""

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.ERROR:
            return f"error: {record.getMessage()}"
        return super().format(record)


def git_revision() -> str:
    """Commit of this checkout, with ``+changes`` when tracked files differ from it."""
    if not (ROOT / ".git").exists():
        return "unknown (not a git checkout)"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except FileNotFoundError:
        return "unknown (git is not installed)"
    except subprocess.CalledProcessError as error:  # such as a checkout that another user owns
        return f"unknown ({' '.join(error.stderr.split())})"


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
                # The last row of a run that was killed may be torn: it is one of those to drop, and
                # a torn step ("1" of "12") would pass for an earlier one.
                whole = (row for row in csv.DictReader(file) if None not in row.values())
                steps = ((row, row.get(resume_key) or "") for row in whole)
                kept = [row for row, at in steps if at.isdecimal() and int(at) < resume_at]
        with replacing(self.path) as file:
            text = io.TextIOWrapper(file, newline="", write_through=True)
            writer = csv.DictWriter(text, self.columns, restval="")
            writer.writeheader()
            writer.writerows({name: row.get(name, "") for name in self.columns} for row in kept)
            text.detach()
        self._file = self.path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, self.columns, restval="")

    def write(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Append rows; columns a row does not name stay empty."""
        with naming(self.path):
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
        self.board = TensorBoard(Path(folder) / "tensorboard", purge_step=resume_at or None)

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
