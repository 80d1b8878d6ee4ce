"""One run: an arm, a seed, a fold. Its folder, and the programs that fill it.

config.yaml       the pretraining config, whole
log.txt           what the programs said, and the commands
pretrain/         folder of main.py: checkpoint, log, curves
pretrained.json   steps and seconds, once pretraining has ended
evaluation/TASK/  folder of downstream_eval.py; done.json once it has ended, with what was asked
done              everything above is there
"""

import fcntl
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from downstream_tasks.config import DownstreamConfig
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.task_files import load_tasks
from scripts.ablation.experiment import Arm, DataSet, Task
from src.config import Config, config_from_dict
from src.pretrain_state import FREE_TO_CHANGE
from src.utils.checkpoint import checkpoint_path
from src.utils.errors import UserError
from src.utils.files import write_text
from src.utils.yaml_config import differences, read_yaml

ROOT = Path(__file__).resolve().parents[2]
DONE, PRETRAINED, TASK_DONE = "done", "pretrained.json", "done.json"
# Places, and what changes no result; anything else makes it another run.
_FREE = FREE_TO_CHANGE - {"data.batch_size", "meta.init_from", "meta.load_checkpoint"}
_LOCK_TRIES = 5
_TASK_FREE = ("output_root", "data.data_path", "model.load_path", "data.num_workers")


@dataclass(frozen=True)
class Run:
    """A run of a plan, in its folder ``path`` on the data of ``data_dir`` (a fold's folder)."""

    path: Path
    arm: Arm
    seed: int
    fold: int
    data: DataSet
    data_dir: Path
    config: Config
    tasks: tuple[Task, ...]
    total_steps: int

    @property
    def name(self) -> str:
        """``ARM/DATA_seed0_fold1``, as the folder is called."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def checkpoint(self) -> Path:
        """The latest checkpoint."""
        return checkpoint_path(self.path / "pretrain", self.config.logging.write_tag)

    @property
    def steps_done(self) -> int:
        """Steps in the CSV of the run: what a progress bar needs, without reading a checkpoint."""
        table = self.path / "pretrain" / f"{self.config.logging.write_tag}_r0.csv"
        if (self.path / PRETRAINED).exists():
            return self.total_steps
        if not table.exists():
            return 0
        header, *rows = table.read_text().splitlines() or [""]
        number = header.split(",").index("step") if rows else 0
        return int(rows[-1].split(",")[number]) if rows else 0

    def results_folder(self, task: Task) -> Path:
        """Where an evaluation is written, by the evaluation's own rule."""
        return self._evaluation(task).output_dir

    def task_done(self, task: Task) -> Path:
        """The file that says that a task has been evaluated, and what was asked."""
        return self.path / "evaluation" / task.label / TASK_DONE

    def asked(self, task: Task) -> dict[str, Any]:
        """The whole config of an evaluation."""
        return self._evaluation(task).to_dict()

    def pretraining_command(self, device: str) -> list[str]:
        """Of main.py; it goes on where there is a checkpoint."""
        resume = ["--resume"] if self.checkpoint.exists() else []
        program = [sys.executable, str(ROOT / "main.py"), "--fname", str(self.path / "config.yaml")]
        return [*program, "--devices", device, *resume]

    def evaluation_command(self, task: Task, device: str) -> list[str]:
        """Of downstream_eval.py."""
        values = [f"{k}={json.dumps(v)}" for k, v in self._task_overrides(task).items()]
        program = [sys.executable, str(ROOT / "downstream_eval.py"), "--config", task.task]
        return [*program, "--devices", device, *values]

    def _task_overrides(self, task: Task) -> dict[str, Any]:
        """The people and the split of the fold's folder first: a task may say otherwise."""
        return {
            "data.data_path": str(self.data_dir),
            "split.source": "folder",
            **placed(task.set, self.data_dir),
            "name": task.label,
            "output_root": str(self.path / "evaluation"),
            "model.load_path": str(self.path / "pretrain"),
        }

    def _evaluation(self, task: Task) -> DownstreamConfig:
        configs = load_tasks(task.task, overrides=self._task_overrides(task))
        if len(configs) > 1:
            raise UserError(f"{task.task} has several targets; name one: set: {{data.target: ...}}")
        return configs[0]

    # --- what is there already -------------------------------------------------------------------

    def check_unchanged(self) -> None:
        """Raise a :class:`UserError` that names what differs from the run in the folder, if any."""
        path, wanted = self.path / "config.yaml", self.config.to_dict()
        if path.exists():
            # Through the config's own reader: a key that is newer than the file has its default.
            stored = config_from_dict(read_yaml(path), str(path)).to_dict()
            if found := differences(wanted, stored, _FREE):
                raise UserError(
                    f"{self.path} holds a run of another arm under this name: {'; '.join(found)}. "
                    f"Give the arm another name, write elsewhere (--out), or remove the run: rm -r "
                    f"{shlex.quote(str(self.path))}"
                )
        for task in self.tasks:
            if (done := self.task_done(task)).exists():
                stored = task_from_dict(json.loads(done.read_text())["asked"], str(done)).to_dict()
                if found := differences(self.asked(task), stored, _TASK_FREE):
                    raise UserError(
                        f"{done.parent} was evaluated otherwise: {'; '.join(found)}. Give the task "
                        "another name, or remove the folder."
                    )

    def prepare(self) -> None:
        """Write the config."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(self.config.to_dict(), sort_keys=False)
        write_text(self.path / "config.yaml", text)

    def is_done(self) -> bool:
        """Whether nothing is left to do, of the tasks of the experiment as it is now."""
        return (self.path / DONE).exists() and not self.tasks_left()

    def tasks_left(self) -> list[Task]:
        """Tasks that have not been evaluated."""
        return [task for task in self.tasks if not self.task_done(task).exists()]

    def revisions(self) -> set[str]:
        """States of the code that the run was pretrained by."""
        path = self.path / "pretrain" / "revision.txt"
        return (
            {line.split(" from ")[0] for line in path.read_text().splitlines()}
            if path.exists()
            else set()
        )

    def tidy(self) -> None:
        """Remove what can be made again: checkpoints before the latest, and stored features.

        The latest stays, for tasks that are thought of later.
        """
        for path in (self.path / "pretrain").glob(f"{self.config.logging.write_tag}-ep*.pth.tar"):
            path.unlink()
        shutil.rmtree(self.path / "evaluation" / "features", ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[int | None]:
        """Hold the run's lock, whose descriptor its programs inherit; ``None`` if another has it.

        A program that outlives a laboratory that was killed keeps the lock until it has ended.
        """
        with (self.path / "lock").open("w") as file:
            yield file.fileno() if _lock(file) else None


def _lock(file: IO) -> bool:
    """Take the lock of an open file, unless another keeps it for longer than a look takes."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1)
    return False


def placed(overrides: Mapping[str, Any], data_dir: Path) -> dict[str, Any]:
    """Overrides whose texts name the fold's folder by ``{data_dir}``."""
    return {
        key: value.replace("{data_dir}", str(data_dir)) if isinstance(value, str) else value
        for key, value in overrides.items()
    }
