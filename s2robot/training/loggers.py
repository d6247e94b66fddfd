"""Log the rows of a training besides metrics.json, through Fabric's own logger classes.

loggers = Loggers(("tensorboard", "wandb"), out, done=500)     # resumes after step 500
loggers.write(row)
loggers.close()

No step is logged twice, also after a kill: TensorBoard hides what comes after the state, and `loggers.json` stores the
run's name at a service and the last step that was sent there.
"""

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.loggers import Logger, TensorBoardLogger

from s2robot.core.errors import UserError
from s2robot.core.files import read_json, write_json


class Loggers:
    """The loggers of one training, made by the process that writes."""

    def __init__(
        self, names: Sequence[str], out: Path, done: int = 0, about: Mapping[str, Any] | None = None
    ) -> None:
        """done: steps of the state that a training resumes from; about: the settings, for a service's table of runs."""
        self._file = out / "loggers.json"
        self._sent = read_json(self._file) if done and self._file.exists() else {}
        self._loggers: dict[str, Logger] = {}
        for name in names:
            if name == "tensorboard":
                self._loggers[name] = TensorBoardLogger(out, name="", version="", purge_step=done + 1)
                continue
            sent = self._sent.setdefault(name, {"run": None, "step": 0})
            try:
                self._loggers[name], sent["run"] = (_wandb if name == "wandb" else _mlflow)(out, sent["run"])
                self._loggers[name].log_hyperparams(dict(about or {}))
            except (
                Exception
            ) as error:  # each service has kinds of its own: no account, no network, no such run
                raise UserError(f"train.loggers: {name}: {' '.join(str(error).split())}") from error
            write_json(self._file, self._sent)

    def write(self, row: Mapping[str, float]) -> None:
        """Log a row of metrics, which has its `step`."""
        step = int(row["step"])
        for name, logger in self._loggers.items():
            if name in self._sent:
                if step <= self._sent[name]["step"]:
                    continue
                self._sent[name]["step"] = step
                write_json(self._file, self._sent)  # first: a kill in between loses a row, none is sent twice
            logger.log_metrics({key: value for key, value in row.items() if key != "step"}, step)

    def close(self) -> None:
        for name, logger in self._loggers.items():
            logger.finalize("success")
            if name == "wandb":  # or the next training of this process would write into the same run
                logger.experiment.finish()  # type: ignore[attr-defined]


def _wandb(out: Path, run: str | None) -> tuple[Logger, str]:
    from pytorch_lightning.loggers import WandbLogger

    run = run or uuid.uuid4().hex[:8]
    return WandbLogger(name=out.name, save_dir=out, project="s2robot", id=run, resume="allow"), run


def _mlflow(out: Path, run: str | None) -> tuple[Logger, str]:
    """MLFLOW_TRACKING_URI says where; by default a database in the run folder."""
    from pytorch_lightning.loggers import MLFlowLogger

    where = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(out / 'mlflow.db').resolve()}")
    logger = MLFlowLogger("s2robot", run_name=out.name, tracking_uri=where, run_id=run)
    return logger, str(logger.run_id)
