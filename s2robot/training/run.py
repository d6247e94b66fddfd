"""A training in a folder: start its processes, resume from the state there, step, log, save, stop between two steps.

The state is one file, which appears whole or not at all. It is written last, after all that belongs to the same step
(checkpoint, metrics), so a kill leaves it behind them, never ahead, and resuming writes them again.

Every process of Lightning Fabric runs the whole command. The first one reaches `launch` and starts the others;
`s2robot.core.run_folder.is_first()` identifies it before that.
"""

import io
import os
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import Logger, TensorBoardLogger
from torch import Tensor

from s2robot.core.errors import UserError, check_same, reported
from s2robot.core.files import read_json, replacing, write_json
from s2robot.core.run_folder import locked
from s2robot.core.timing import span
from s2robot.training.loop import Learner
from s2robot.training.settings import Fitting


def launch(settings: Fitting, where: str) -> Fabric:
    """Return Fabric with its processes started; UserError for a device, strategy or precision that is not there."""
    kinds = (ValueError, RuntimeError, ImportError, TypeError)  # of whatever a strategy needs
    with reported(where, kinds=kinds):
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            precision=precision_of(settings),  # type: ignore[arg-type]  # Fabric names those that it knows
        )
        fabric.launch()
        if settings.threads:
            torch.set_num_threads(settings.threads)
    return fabric


def precision_of(settings: Fitting) -> str:
    """Return Fabric's name of the precision; `auto` is bf16-mixed on a GPU that has bfloat16, else 32-true."""
    if settings.precision != "auto":
        return settings.precision
    # what a GPU emulates is slower than float32
    fast = _on_gpu(settings) and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if fast else "32-true"


def _on_gpu(settings: Fitting) -> bool:
    return settings.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()


def product_of(settings: Fitting) -> torch.dtype:
    """Return the number format in which a step multiplies matrices: with `auto`, bfloat16 where the processor has it."""
    auto = settings.precision == "auto" and not _on_gpu(settings) and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if auto or precision_of(settings).startswith("bf16") else torch.float32


def mean_of_all(fabric: Fabric, value: Tensor) -> Tensor:
    return value if fabric.world_size == 1 else fabric.all_reduce(value, reduce_op="mean")  # type: ignore[return-value]


class Run:
    """The steps of a training; subclasses define what a batch is, and what is logged and saved.

    Args:
        size: what a step divides among the processes, which all get as much.
        identity: the settings and data that decide the result; a state with others is rejected.
    """

    verb: ClassVar[str]
    state_file: ClassVar[str]

    def __init__(
        self,
        fabric: Fabric,
        learner: Learner,
        settings: Fitting,
        size: int,
        out: Path,
        identity: dict[str, Any],
    ) -> None:
        if size % fabric.world_size:
            raise UserError(
                f"{self.verb}.batch_size: expected a multiple of {fabric.world_size} a step for as many processes, "
                f"got {size}"
            )
        self.fabric, self.learner, self.settings, self.out = fabric, learner, settings, out
        self.steps: int = settings.steps
        self.identity, self.state_path = identity, out / self.state_file
        self.loggers: Loggers | None = None  # of the process that writes
        self._in_step = self._stopped = False

    def run(self) -> None:
        """Do the steps that are left, in a folder that is locked against a second training.

        A process alone saves its state on Ctrl-C and SIGTERM before it ends; the loss of one of several is one line.
        """
        first, world = self.fabric.is_global_zero, self.fabric.world_size
        with locked(self.out) if first else nullcontext(), self._signals() if world == 1 else nullcontext():
            try:
                self._run()
            except RuntimeError as error:
                words = ("gloo", "nccl", "connection")
                lost = isinstance(error, torch.distributed.DistError) or any(
                    w in str(error).lower() for w in words
                )
                if world == 1 or not lost:
                    raise
                raise UserError(
                    f"{self.verb}: process {self.fabric.global_rank + 1} of {world} lost another, which was killed or "
                    "says in a line of its own why it ended; the same command resumes from the last state"
                ) from error

    def _run(self) -> None:
        resumes = self.settings.resume and self.state_path.exists()
        self.begin(self._load_state() if resumes else None)
        while self.learner.step < self.steps:
            with span("step", step=self.learner.step):
                self._in_step = True
                with span("batch"):
                    given = self.batch(self.learner.step)
                loss, rest = self.learner.update(*given)
                self._in_step = False
                self.after(loss, rest)
            if self._stopped:
                self.save()
                raise KeyboardInterrupt
        self.close()

    def begin(self, state: dict[str, Any] | None) -> None:
        """Take over what `save_state` stored, or start over, and open the loggers."""
        raise NotImplementedError

    def batch(self, step: int) -> tuple:
        """Return the model's arguments at a step."""
        raise NotImplementedError

    def after(self, loss: Tensor, rest: Any) -> None:
        """Log and save what is due after a step, given its loss and what else the model returned."""
        raise NotImplementedError

    def save(self) -> None:
        """Save what belongs to this step, the state last."""
        raise NotImplementedError

    def close(self) -> None:
        if self.loggers is not None:
            self.loggers.close()
        self.fabric.barrier()

    def _load_state(self) -> dict[str, Any]:
        """Return the state in the folder and put the learner into it."""
        path = self.state_path
        with reported(f"{path}: not a readable state of a training; remove it to start over"):
            state = torch.load(path, map_location=self.fabric.device, weights_only=True)
            saved = dict(state["identity"])
        begin = f", or begin with its weights by train.from={self.out / 'checkpoint'}"
        remedy = "remove it or choose another folder" + begin * (self.verb == "train")
        ours = {key: value for key, value in self.identity.items() if key in saved}
        check_same(path, {key: saved[key] for key in ours}, ours, " in the state of another run", remedy)
        self.learner.load_state_dict(state)
        return state

    def save_state(self, **own: Any) -> None:
        state = {"identity": self.identity, **self.learner.state_dict(), **own}
        whole = io.BytesIO()  # torch would hide the error of a full disk
        torch.save(state, whole)
        with replacing(self.state_path) as part, part.open("wb") as file:
            file.write(whole.getbuffer())
            file.flush()
            os.fsync(file.fileno())  # whole before it gets its name, also after a power cut

    def check_loss(self, value: float, lr: float) -> None:
        """Raise UserError for a loss that is not finite; nothing of its step is saved."""
        if not abs(value) < float("inf"):
            step = self.learner.step
            raise UserError(f"{self.verb}: the loss is {value} at step {step}; lower {self.verb}.lr ({lr})")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle Ctrl-C and SIGTERM, in the main thread and where nobody else has taken or ignored them."""
        usual = (signal.default_int_handler, signal.SIG_DFL)
        main = threading.current_thread() is threading.main_thread()
        taken = [s for s in (signal.SIGINT, signal.SIGTERM) if main and signal.getsignal(s) in usual]
        before = {s: signal.signal(s, self._on_signal) for s in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, *_: object) -> None:
        """Inside a step wait for its end; elsewhere, and on a second signal, stop at once."""
        if not self._in_step or self._stopped:
            raise KeyboardInterrupt
        self._stopped = True


class Loggers:
    """Fabric's loggers of one training, beside metrics.json, made by the process that writes.

    No step is logged twice, also after a kill: TensorBoard hides what comes after the state, and `loggers.json` stores the
    run's name at a service and the last step that was sent there.
    """

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
            with reported(f"train.loggers: {name}"):  # no account, no network, no such run
                self._loggers[name], sent["run"] = (_wandb if name == "wandb" else _mlflow)(out, sent["run"])
                self._loggers[name].log_hyperparams(dict(about or {}))
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
