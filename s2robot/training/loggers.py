"""Where the rows of a training go besides metrics.json, through Fabric's own logger classes.

loggers = Loggers(("tensorboard", "csv"), out, rows)     # rows: those of the state that a training goes on from
loggers.write(row)
loggers.close()

No step stands twice anywhere, also after a kill: TensorBoard hides what comes after the state, the CSV is written
anew, and for a service `loggers.json` keeps the run's name there and the last step that it was told of. The steps
in between come again with the same values, so they need not be told again.
"""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.loggers import CSVLogger, Logger, TensorBoardLogger

from s2robot.common.errors import UserError
from s2robot.common.files import write_json
from s2robot.training.settings import SERVICES


class Loggers:
    """The loggers of one training; made by the process that writes."""

    def __init__(
        self,
        names: Sequence[str],
        out: Path,
        rows: Sequence[Mapping[str, float]],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """out: the run folder; about: the settings, for a service's table of runs."""
        self._file, self._told = out / "loggers.json", _told(out / "loggers.json") if rows else {}
        done = int(rows[-1]["step"]) if rows else 0
        self._loggers: dict[str, Logger] = {}
        for name in names:
            if name == "tensorboard":
                self._loggers[name] = TensorBoardLogger(out, name="", version="", purge_step=done + 1)
            elif name == "csv":
                self._loggers[name] = _csv(out, rows)
            else:
                self._loggers[name] = self._service(name, out, about or {})

    def write(self, row: Mapping[str, float]) -> None:
        """A row of metrics, which has its `step`."""
        step = int(row["step"])
        for name, logger in self._loggers.items():
            if name in SERVICES:
                if step <= self._told[name]["step"]:
                    continue
                self._told[name]["step"] = step
                write_json(self._file, self._told)  # first: a kill in between loses a row, none stands twice
            _log(logger, row)

    def close(self) -> None:
        for name, logger in self._loggers.items():
            logger.finalize("success")
            if name == "wandb":  # or the next training of this process would write into the same run
                logger.experiment.finish()  # type: ignore[attr-defined]

    def _service(self, name: str, out: Path, about: Mapping[str, Any]) -> Logger:
        """The logger of a service, for a new run there or the one that an earlier process began."""
        known = self._told.setdefault(name, {"run": None, "step": 0})
        try:
            logger, known["run"] = (
                _wandb(out, known["run"]) if name == "wandb" else _mlflow(out, known["run"])
            )
            logger.log_hyperparams(dict(about))
        except Exception as error:  # each service has kinds of its own: no account, no network, no such run
            raise UserError(f"train.loggers: {name}: {' '.join(str(error).split())}") from error
        write_json(self._file, self._told)
        return logger


def _wandb(out: Path, run: str | None) -> tuple[Logger, str]:
    from pytorch_lightning.loggers import WandbLogger

    run = run or uuid.uuid4().hex[:8]
    return WandbLogger(name=out.name, save_dir=out, project="s2robot", id=run, resume="allow"), run


def _mlflow(out: Path, run: str | None) -> tuple[Logger, str]:
    """MLFLOW_TRACKING_URI says where; a database in the run folder without it."""
    from pytorch_lightning.loggers import MLFlowLogger

    where = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(out / 'mlflow.db').resolve()}")
    logger = MLFlowLogger("s2robot", run_name=out.name, tracking_uri=where, run_id=run)
    return logger, str(logger.run_id)


def _csv(out: Path, rows: Sequence[Mapping[str, float]]) -> CSVLogger:
    """`csv/metrics.csv`, begun anew with the rows that stand."""
    (out / "csv" / "metrics.csv").unlink(missing_ok=True)
    logger = CSVLogger(out, name="", version="csv", flush_logs_every_n_steps=1)
    for row in rows:
        _log(logger, row)
    return logger


def _log(logger: Logger, row: Mapping[str, float]) -> None:
    logger.log_metrics({key: value for key, value in row.items() if key != "step"}, int(row["step"]))


def _told(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError(f"{path}: not valid JSON; remove it, and services begin a new run") from None
