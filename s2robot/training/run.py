"""A training in a folder: resume from the state there, step, log, save, and stop between two steps.

The state is one file, which appears whole or not at all. It is written last, after all that stands for the same step
(checkpoint, metrics), so a kill leaves it behind them, never ahead, and resuming writes them again.
"""

import io
import os
import signal
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning_fabric import Fabric
from torch import Tensor

from s2robot.core.errors import UserError
from s2robot.core.files import replacing
from s2robot.core.timing import span
from s2robot.training.loggers import Loggers
from s2robot.training.loop import Learner


class Run:
    """The steps of a training; subclasses say what a batch is, and what is logged and saved."""

    state_file: ClassVar[str]

    def __init__(
        self, fabric: Fabric, learner: Learner, steps: int, out: Path, identity: Mapping[str, Any]
    ) -> None:
        """identity: the settings and data that decide the result; a state with others is rejected."""
        self.fabric, self.learner, self.steps, self.out = fabric, learner, steps, out
        self.identity = dict(identity)
        self.loggers: Loggers | None = None  # of the process that writes
        self._in_step = self._stopped = False

    def run(self) -> None:
        """Do the steps that are left. A process alone saves its state on Ctrl-C and SIGTERM before it ends."""
        self.resume()
        with self._signals() if self.fabric.world_size == 1 else nullcontext():
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

    def batch(self, step: int) -> tuple:
        """Return the model's arguments at a step."""
        raise NotImplementedError

    def after(self, loss: Tensor, rest: Any) -> None:
        """Log and save what is due after a step, given its loss and what else the model returned."""
        raise NotImplementedError

    def resume(self) -> None:
        """Load the state in the folder, if there is one, and open the loggers."""
        raise NotImplementedError

    def save(self) -> None:
        """Save what stands for this step, the state last."""
        raise NotImplementedError

    def close(self) -> None:
        if self.loggers is not None:
            self.loggers.close()
        self.fabric.barrier()

    @property
    def state_path(self) -> Path:
        return self.out / self.state_file

    def load_state(self) -> dict[str, Any]:
        """Return the state in the folder and put the learner into it.

        Raises:
            UserError: a file that cannot be read, or of a run with other settings, data or encoder.
        """
        path = self.state_path
        try:
            state = torch.load(path, map_location=self.fabric.device, weights_only=True)
            saved = dict(state["identity"])
        except Exception as error:  # torch raises many kinds for a broken file
            raise UserError(f"{path}: not a readable state of a training; remove it to start over") from error
        for key, value in self.identity.items():
            if key in saved and (difference := first_difference(key, saved[key], value)):
                begin = f"; train.from={self.out / 'checkpoint'} begins with its weights"
                raise UserError(
                    f"{path}: found the state of another run; remove it or choose another folder ({difference})"
                    + (begin if key == "train.steps" else "")
                )
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


def first_difference(key: str, was: Any, now: Any, free: Collection[str] = ()) -> str:
    """Name the first value that differs, by its dotted key, or return ""; keys in `free` may differ."""
    if key in free:
        return ""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        each = (first_difference(f"{key}.{k}", was.get(k), now.get(k), free) for k in {**was, **now})
        return next(filter(None, each), "")
    was, now = (list(value) if isinstance(value, tuple) else value for value in (was, now))
    return "" if was == now else f"made with {key} {_short(was)}, this run has {_short(now)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
