"""Run a training in a folder: start its processes, resume from the saved state, step, log, save, stop between steps.

The state is one file, written atomically. It is written last, after the checkpoint and metrics of the same step, so
after a kill it may be older than they are, never newer, and resuming writes them again.

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


def fabric_of(settings: Fitting, where: str) -> Fabric:
    """Return Fabric without starting its processes; UserError for an unavailable device, strategy or precision."""
    with reported(where):  # Lightning raises many types
        return Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            precision=precision_of(settings),  # type: ignore[arg-type]  # Fabric expects a Literal
        )


def launch(settings: Fitting, where: str) -> Fabric:
    """Return Fabric with its processes started (UserError: see `fabric_of`)."""
    fabric = fabric_of(settings, where)
    with reported(where):
        fabric.launch()
        if settings.threads:
            torch.set_num_threads(settings.threads)
    return fabric


def precision_of(settings: Fitting) -> str:
    """Return Fabric's name for the precision; `auto` is bf16-mixed on a GPU that supports bfloat16, else 32-true."""
    if settings.precision != "auto":
        return settings.precision
    # emulated bfloat16 is slower than float32
    fast = _on_gpu(settings) and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if fast else "32-true"


def _on_gpu(settings: Fitting) -> bool:
    return settings.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()


def product_of(settings: Fitting) -> torch.dtype:
    """Return the number format in which a step multiplies matrices: with `auto`, bfloat16 if the CPU supports it."""
    auto = settings.precision == "auto" and not _on_gpu(settings) and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if auto or precision_of(settings).startswith("bf16") else torch.float32


def mean_of_all(fabric: Fabric, value: Tensor) -> Tensor:
    return value if fabric.world_size == 1 else fabric.all_reduce(value, reduce_op="mean")  # type: ignore[return-value]


def check_share(verb: str, size: int, processes: int) -> None:
    if size % processes:
        expected = f"a multiple of {processes} (the number of processes)"
        raise UserError(f"{verb}.batch_size: expected {expected}, got {size} per step")


class Run:
    """The steps of a training; subclasses define batches, logging and saving.

    Args:
        size: the number of samples that a step divides equally among the processes.
        identity: the settings and data that determine the result; a state with a different identity is rejected.
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
        check_share(self.verb, size, fabric.world_size)
        self.fabric, self.learner, self.settings, self.out = fabric, learner, settings, out
        self.steps: int = settings.steps
        self.identity, self.state_path = identity, out / self.state_file
        self.loggers: Loggers | None = None  # only in the writing process
        self._in_step = self._stopped = False

    def run(self) -> None:
        """Run the remaining steps, with the folder locked against a second training.

        A single process saves its state on Ctrl-C and SIGTERM before it exits. UserError if one of several is lost.
        """
        first, world = self.fabric.is_global_zero, self.fabric.world_size
        with locked(self.out) if first else nullcontext(), self._signals() if world == 1 else nullcontext():
            try:
                self._run()
            except RuntimeError as error:
                named = any(word in str(error).lower() for word in ("gloo", "nccl", "connection"))
                lost = named or isinstance(error, torch.distributed.DistError)
                if world == 1 or not lost:
                    raise
                raise UserError(
                    f"{self.verb}: process {self.fabric.global_rank + 1} of {world} lost another process, which was "
                    "killed or reported its own error; rerun the command to resume from the last state"
                ) from error

    def _run(self) -> None:
        resume, device = self.settings.resume, self.fabric.device
        if state := self.load_state(self.out, self.identity, device) if resume else None:
            self.learner.load_state_dict(state)
        self.begin(state)
        while self.learner.step < self.steps:
            with span("step", step=self.learner.step):
                self._in_step = True
                with span("batch"):
                    batch = self.batch(self.learner.step)
                loss, rest = self.learner.update(*batch)
                self._in_step = False
                self.after(loss, rest)
            if self._stopped:
                self.save()
                raise KeyboardInterrupt
        self.close()

    def begin(self, state: dict[str, Any] | None) -> None:
        """Restore the values of `save_state`, or start over, and open the loggers."""
        raise NotImplementedError

    def batch(self, step: int) -> tuple:
        """Return the model's arguments at a step."""
        raise NotImplementedError

    def after(self, loss: Tensor, rest: Any) -> None:
        """Log and save what is due after a step, given its loss and the model's other outputs."""
        raise NotImplementedError

    def save(self) -> None:
        """Save everything that belongs to this step, the state last."""
        raise NotImplementedError

    def close(self) -> None:
        if self.loggers is not None:
            self.loggers.close()
        self.fabric.barrier()

    @classmethod
    def load_state(cls, out: Path, identity: Mapping[str, Any], device: Any = "cpu") -> dict[str, Any] | None:
        """Load the state in a folder, None without one; UserError if it is unreadable or of another identity."""
        path = out / cls.state_file
        if not path.exists():
            return None
        with reported(f"{path}: not a readable training state; remove it to start over"):
            state = torch.load(path, map_location=device, weights_only=True)
            saved = dict(state["identity"])
        begin = f", or start from its weights with train.from={out / 'checkpoint'}"
        remedy = "remove it or choose another folder" + begin * (cls.verb == "train")
        own = {key: value for key, value in identity.items() if key in saved}
        check_same(path, {key: saved[key] for key in own}, own, " as in the saved state", remedy)
        return state

    def save_state(self, **own: Any) -> None:
        state = {"identity": self.identity, **self.learner.state_dict(), **own}
        buffer = io.BytesIO()  # torch would hide the error of a full disk
        torch.save(state, buffer)
        with replacing(self.state_path) as part, part.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())  # complete before the rename, also after a power cut

    def check_loss(self, value: float, lr: float) -> None:
        """Raise UserError for a loss that is not finite; its step is not saved."""
        if not abs(value) < float("inf"):
            step = self.learner.step
            raise UserError(f"{self.verb}: the loss is {value} at step {step}; lower {self.verb}.lr ({lr})")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle Ctrl-C and SIGTERM in the main thread, unless they already have another handler or are ignored."""
        defaults = (signal.default_int_handler, signal.SIG_DFL)
        main = threading.current_thread() is threading.main_thread()
        handled = [s for s in (signal.SIGINT, signal.SIGTERM) if main and signal.getsignal(s) in defaults]
        before = {s: signal.signal(s, self._on_signal) for s in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, *_: object) -> None:
        """Inside a step, wait for its end; otherwise, or on a second signal, stop immediately."""
        if not self._in_step or self._stopped:
            raise KeyboardInterrupt
        self._stopped = True


class Loggers:
    """Fabric's loggers of one training, in addition to metrics.json, created by the writing process.

    No step is logged twice, even after a kill: TensorBoard hides steps after the state, and `loggers.json` stores the
    run's ID at a service and the last step sent there.
    """

    def __init__(
        self, names: Sequence[str], out: Path, done: int = 0, about: Mapping[str, Any] | None = None
    ) -> None:
        """done: step of the state that a training resumes from; about: the settings, for a service's table of runs."""
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
        """Log a row of metrics, which contains its `step`."""
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
            if name == "wandb":  # otherwise the next training of this process would write to the same run
                logger.experiment.finish()  # type: ignore[attr-defined]


def _wandb(out: Path, run: str | None) -> tuple[Logger, str]:
    from pytorch_lightning.loggers import WandbLogger

    run = run or uuid.uuid4().hex[:8]
    return WandbLogger(name=out.name, save_dir=out, project="s2robot", id=run, resume="allow"), run


def _mlflow(out: Path, run: str | None) -> tuple[Logger, str]:
    """Log to MLFLOW_TRACKING_URI; by default a database in the run directory."""
    from pytorch_lightning.loggers import MLFlowLogger

    uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(out / 'mlflow.db').resolve()}")
    logger = MLFlowLogger("s2robot", run_name=out.name, tracking_uri=uri, run_id=run)
    return logger, str(logger.run_id)
