"""Tiles of one image on several devices or processes at once: less time for a single frame.

    TileParallel(vit, devices=["cuda:0", "cuda:1"])(tiles)           # a replica a device, a thread each
    with TileParallel(vit, processes=2) as model:                    # workers on the cores of a CPU
        encode(model, levels, layout, front=1)     # `s2robot.s2.engine`

The batch of a call is cut into parts as equal as possible, so at scales 1 and 2 the five tiles of one frame
keep two workers busy for three tiles' time: at most 5 / 3 as fast as one of them. Results are those of the
model to rounding (1e-6 in float32). They are the same to the byte where the model's kernels compute a tile
alike in batches of any size, which is not promised by torch.

By hand, since torch's DataParallel is for GPUs alone and its distributed modules want every process to run the whole
program: none spreads one call of a model over the cores of a CPU.

Worker processes are copies of one that has imported torch and timm (`s2robot.envs.processes`); Ctrl-C is for the process that
started them. A script that uses them needs `if __name__ == "__main__":` around its work.
"""

from __future__ import annotations

import signal
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import Tensor, nn
from torch import multiprocessing as mp

from s2robot.common.errors import UserError
from s2robot.envs.processes import prepare

_STOP_S = 30.0  # how long a worker may take to end by itself; on a busy machine that is several seconds


class TileParallel(nn.Module):
    """A frozen model whose calls are spread over devices or processes; called as the model itself.

    Args:
        model: (n, 3, h, w) -> a tensor with n rows. With processes it must be one that can be pickled.
        devices: one part of each call goes to each of them. "cpu" may stand there several times.
        processes: instead, so many worker processes on this machine's CPU. They share the model's weights,
            which stay in shared memory; what `s2robot.backbones.inference.prepare` packs, each packs for itself.
        threads: of torch in each worker process or "cpu" device; default: the threads of this process divided
            by their number.

    Results are on the device of the input. Whatever else the model has (num_prefix_tokens, spec, ...) can be
    read here too. Use it as a context manager, or call `close`. Raises UserError for arguments that do not fit,
    and RuntimeError if a worker fails or ends.
    """

    def __init__(
        self,
        model: nn.Module,
        devices: Sequence[str | torch.device] | None = None,
        *,
        processes: int | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        if (devices is None) == (processes is None):
            raise UserError(f"tile-parallel: found devices {devices} and processes {processes}, give one")
        known = None if devices is None else _known(devices)
        n: Any = processes if known is None else len(known)
        if not all(
            hasattr(count, "__index__") and count >= 1 for count in (n, 1 if threads is None else threads)
        ):
            raise UserError(
                f"tile-parallel: found {n} parts and threads {threads}, expected at least 1 of each, whole numbers"
            )
        self.model = model.eval().requires_grad_(False)
        threads = threads or max(1, torch.get_num_threads() // n)
        self._crew: _Threads | _Workers | None
        try:
            self._crew = _Workers(model, n, threads) if known is None else _Threads(model, known, threads)
        except _Ended as error:
            raise RuntimeError(str(error)) from None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Images (n, 3, h, w) to the model's rows (n, ...); without gradients."""
        if self._crew is None:
            raise RuntimeError("tile-parallel: already closed")
        if not len(x):
            with torch.no_grad():
                return self.model(x, *args, **kwargs)
        try:
            return self._crew.run(x, args, kwargs)
        except _Ended as error:
            self.close()
            raise RuntimeError(str(error)) from None

    def close(self) -> None:
        """End threads or processes; a later call is an error."""
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()

    def __enter__(self) -> TileParallel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)


class _Ended(Exception):
    """A worker process is gone."""


def _known(devices: Any) -> list[torch.device]:
    """Devices by their names; UserError unless they are several in a row, known to torch and there."""
    if isinstance(devices, str) or not isinstance(devices, Sequence):
        raise UserError(f"tile-parallel: found devices {devices!r}, expected several, such as ['cpu', 'cpu']")
    known = []
    for name in devices:
        try:
            known.append(torch.device(name))
            torch.empty(0, device=known[-1])
        except (AssertionError, RuntimeError, TypeError) as error:  # no device's name, or none of that kind
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"tile-parallel: found device {name!r}, which torch cannot use: {reason}"
            ) from error
    return known


class _Threads:
    """One thread a device; devices that are named twice share a replica."""

    def __init__(self, model: nn.Module, devices: list[torch.device], threads: int) -> None:
        first = next(model.parameters(), torch.empty(0)).device
        self.devices = devices
        replicas = {d: model if d == first else deepcopy(model).to(d) for d in dict.fromkeys(self.devices)}
        self.replicas = [replicas[device] for device in self.devices]
        # one pool a device: torch's thread count belongs to the thread that sets it
        self.pools = [
            ThreadPoolExecutor(1, initializer=partial(_set_threads, device, threads))
            for device in self.devices
        ]

    def run(self, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        inference = torch.is_inference_mode_enabled()
        parts = _parts(len(x), len(self.devices))
        futures = [
            pool.submit(_run_on, replica, device, inference, x[start:stop], args, kwargs)
            for pool, replica, device, (start, stop) in zip(
                self.pools, self.replicas, self.devices, parts, strict=False
            )
        ]
        return torch.cat([future.result().to(x.device) for future in futures])

    def close(self) -> None:
        for pool in self.pools:
            pool.shutdown()


def _set_threads(device: torch.device, threads: int) -> None:
    if device.type == "cpu":
        torch.set_num_threads(threads)


def _run_on(
    model: nn.Module, device: torch.device, inference: bool, x: Tensor, args: tuple, kwargs: dict[str, Any]
) -> Tensor:
    with torch.inference_mode() if inference else torch.no_grad():
        return _tensor(model(x.to(device, non_blocking=True), *args, **kwargs))


def _parts(rows: int, n: int) -> list[tuple[int, int]]:
    """Ranges of rows, at most n, equal to one row, the longer ones first."""
    sizes = [rows // n + (i < rows % n) for i in range(min(n, rows))]
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]


def _tensor(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise UserError(f"tile-parallel: the model gives a {type(output).__name__}, expected a tensor")
    return output


class _Workers:
    """Worker processes, with one shared tensor for the input and one a worker for its output."""

    def __init__(self, model: nn.Module, n: int, threads: int) -> None:
        first = next(model.parameters(), torch.empty(0)).device
        if first.type != "cpu":
            raise UserError(f"tile-parallel: processes compute on the CPU, found a model on {first}")
        self.inbox: Tensor | None = None
        self.outboxes: list[Tensor | None] = [None] * n
        self.connections: list[Connection] = []
        self.processes: list[Any] = []
        prepare()
        context = mp.get_context("forkserver")
        try:
            for _ in range(n):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, threads), daemon=True)
                process.start()
                theirs.close()
                self.connections.append(ours)
                self.processes.append(process)
            for i, ours in enumerate(self.connections):  # not with the start, which takes 250 tensors at most
                try:
                    ours.send(model)
                except ConnectionError:
                    raise self._ended(i) from None
        except _Ended:
            _end(self.connections, self.processes)
            raise
        except Exception as error:  # pickle raises many kinds
            _end(self.connections, self.processes)
            raise UserError(
                f"tile-parallel: {type(model).__name__} cannot go to a process: {error}"
            ) from error
        self.close = weakref.finalize(self, _end, self.connections, self.processes)
        for i in range(n):
            self._receive(i)  # ready

    def run(self, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        try:
            errors, rows = self._spread(x, args, kwargs)
        except (
            BaseException
        ):  # Ctrl-C, or arguments that cannot be sent: answers to come would be taken for later ones
            self._kill()
            raise
        if errors:
            raise RuntimeError(errors[0])
        return torch.cat(rows).to(x.device)

    def _spread(self, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> tuple[list[str], list[Tensor]]:
        """What went wrong in workers, or the rows of each."""
        new = self.inbox is None or self.inbox.shape != x.shape or self.inbox.dtype != x.dtype
        if new:
            self.inbox = torch.empty(x.shape, dtype=x.dtype).share_memory_()
        assert self.inbox is not None  # for the type checker
        self.inbox.copy_(x.detach())
        parts = _parts(len(x), len(self.processes))
        for i, connection in enumerate(self.connections):
            part = parts[i] if i < len(parts) else None
            try:
                connection.send((self.inbox if new else None, part, args, kwargs))
            except OSError:
                raise self._ended(i) from None
        errors, rows = list[str](), list[Tensor]()
        for i in range(len(self.processes)):  # every worker answers, also if another has failed
            kind, content = self._receive(i)
            if kind == "failed":
                errors.append(f"tile worker {i + 1} of {len(self.processes)}: {content}")
            elif kind == "new":
                self.outboxes[i] = content
            if i < len(parts) and not errors and (row := self.outboxes[i]) is not None:
                rows.append(row)
        return errors, rows

    def _kill(self) -> None:
        """They may be busy with what nobody waits for."""
        for process in self.processes:
            process.kill()

    def _receive(self, i: int) -> tuple[str, Any]:
        connection, process = self.connections[i], self.processes[i]
        wait([connection, process.sentinel])
        try:
            return connection.recv()
        except (EOFError, OSError):
            raise self._ended(i) from None

    def _ended(self, i: int) -> _Ended:
        self.processes[i].join(_STOP_S)
        code = self.processes[i].exitcode
        self._kill()
        return _Ended(f"tile worker {i + 1} of {len(self.processes)} has ended (exit code {code})")


def _end(connections: list[Connection], processes: list[Any]) -> None:
    for connection in connections:
        connection.close()  # the worker reads the end of its pipe and returns
    for process in processes:
        process.join(_STOP_S)
        if process.is_alive():
            process.kill()
            process.join()


def _work(connection: Connection, threads: int) -> None:
    """A worker's life: the model in; (input if it is a new one, rows, args, kwargs) in, ("new", output) or ("same", None) out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    model = connection.recv()
    inbox = torch.empty(0)
    outbox: Tensor | None = None
    connection.send(("ready", None))
    while True:
        try:
            new, part, args, kwargs = connection.recv()
        except (EOFError, OSError):
            return
        inbox = inbox if new is None else new
        reply: tuple[str, Any] = ("same", None)
        try:
            if part is not None:
                with torch.inference_mode():
                    rows = _tensor(model(inbox[slice(*part)], *args, **kwargs))
                if outbox is None or outbox.shape != rows.shape or outbox.dtype != rows.dtype:
                    outbox = torch.empty(rows.shape, dtype=rows.dtype).share_memory_()
                    reply = ("new", outbox)
                outbox.copy_(rows)
        except Exception as error:
            outbox = None  # the other side may not have it
            reply = ("failed", f"{type(error).__name__}: {error}")
        try:
            connection.send(reply)
        except OSError:
            return
