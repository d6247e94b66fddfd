"""Ray as the engine: workers are actors, on this machine or on the nodes of a cluster.

    with closing(Ray(address="auto")) as engine, running_on(engine): ...

The workers' state is stored in Ray once, and sent to each node once. When a worker dies, alone or with its node, the pool
(`s2robot.core.workers`) restarts its task elsewhere; Ray's own retries are off.
"""

import logging
import math
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from s2robot.core import workers as pools
from s2robot.core.errors import UserError, reported
from s2robot.core.provenance import versions
from s2robot.core.settings import Settings, from_yaml

_CONNECT_S = 5.0  # timeout of a connection to an address
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # no reports; not 15


class Ray(Settings, at="engine", file="engine/ray"):
    """The Ray engine. It connects when the first pool is made, and reuses a Ray that this process has already started.
    configs/engine/ray.yaml documents each value."""

    name: Literal["ray"] = from_yaml()
    address: str | None = from_yaml()
    workers: int | None = from_yaml(ge=1)
    gpus_per_encoder: float = from_yaml(ge=0)
    cpus: int | None = from_yaml(ge=1)
    store_mb: int | None = from_yaml(ge=80)
    is_remote: ClassVar[bool] = True
    _started: bool = False  # by this object
    _ray: Any = None  # the module, once connected

    def pool(self, count: int, make: Callable[[], Any] | None, encodes: bool, anywhere: bool) -> pools.Pool:
        """Return workers for all CPUs of the cluster, or ``count`` local ones unless ``anywhere``. UserError if it has none."""
        if not anywhere:
            return pools.Local().pool(count, make, encodes, anywhere)
        ray, gpus = self._connected(), self.gpus_per_encoder if encodes else 0
        has = ray.cluster_resources()
        fits = min(has.get("CPU", 0), has.get("GPU", 0) / gpus if gpus else math.inf)
        if fits < 1:
            key = "gpus_per_encoder" if gpus else "address"
            found = f"{has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs"
            raise UserError(f"engine.{key}: expected a Ray cluster with resources for a worker, got {found}")
        try:
            state = ray.put(pickle.dumps(make))
        except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
            raise _full(error) from None
        remote = ray.remote(_remote_class()).options(num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD")
        return pools.Pool([Actor(ray, remote, state) for _ in range(self.workers or int(fits))])

    def overrides(self) -> tuple[str, ...]:
        values = {"workers": self.workers, "gpus_per_encoder": self.gpus_per_encoder or None}
        others = (f"engine.{key}={value}" for key, value in values.items() if value is not None)
        address = self.address or self._connected().get_runtime_context().gcs_address
        return "engine=ray", f"engine.address={address}", *others

    def close(self) -> None:
        if self._started and self._ray is not None:
            self._ray.shutdown()
        self._ray, self._started = None, False

    def _connected(self) -> Any:
        """Connect to Ray or start it; UserError if there is no answer, or another version."""
        if self._ray is not None:
            return self._ray
        os.environ.update(ENVIRONMENT | os.environ)
        import ray

        if not ray.is_initialized():
            address, store = self.address, self.store_mb
            options: dict[str, Any] = {"include_dashboard": False} if address is None else {}
            # a running Ray rejects these
            resources = {"num_cpus": self.cpus, "object_store_memory": store and store * 1_000_000}
            options |= {key: value for key, value in resources.items() if value}
            if address not in (None, "auto"):
                _check_answers(address)
            handler = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
                # Ray's handler exits at once, so training could not save its last step
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, handler)
            except Exception as error:  # Ray raises many types, mostly RuntimeError
                ray.shutdown()
                name = address or "a local Ray"
                raise UserError(f"engine.address: {name}: {_first_lines(error, 6)}") from None
            self._started = True
        self._ray = ray
        return ray


def _check_answers(address: str) -> None:
    """Raise UserError at once if an address does not answer; Ray itself would retry for minutes."""
    with reported(f"engine.address: expected a Ray (ray start --head), got {address}"):
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.scheme not in ("", "ray") or parts.port is None:
            raise ValueError("neither null, auto, <host>:<port> nor ray://<host>:<port>")
        socket.create_connection((parts.hostname, parts.port), _CONNECT_S).close()


class Actor:
    def __init__(self, ray: Any, remote: Any, state: Any) -> None:
        self._ray, self._remote, self._state = ray, remote, state
        self._actor: Any = None

    def start(self) -> None:
        self.kill()
        actor = self._actor = self._remote.remote()
        node, why = self._result(lambda: actor.begin.remote(self._state, installed()))
        if why is not None:
            raise UserError(f"engine: node {node}: {why}")

    def call(self, function: Callable, args: tuple) -> Any:
        result, error = self._result(lambda: self._actor.call.remote(function, args))
        if error is not None:
            raise error
        return result

    def kill(self) -> None:
        if self._actor is not None:
            with suppress(Exception):  # it may have ended already
                self._ray.kill(self._actor)

    stop = kill

    def _result(self, send: Callable[[], Any]) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(send())
        except errors.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, errors.ObjectStoreFullError | errors.OutOfDiskError):
                raise _full(cause) from None
            # errors of the task itself are returned as results; a RayTaskError would recur in a retry
            kind = UserError if isinstance(error, errors.RayTaskError) else pools.Died
            raise kind(f"engine: Ray: {_first_lines(cause)}") from None


def _full(error: BaseException) -> UserError:
    why = "expected a larger object store, or fewer engine.workers; Ray's object store and its disk are full"
    return UserError(f"engine.store_mb: {why} ({_first_lines(error)})")


def _first_lines(error: BaseException, count: int = 1) -> str:
    """Return the first lines of a Ray error, before its tables and tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:count]) or type(error).__name__


def installed() -> dict[str, str]:
    """Return the package versions that must match on all nodes, without suffixes such as +cu121."""
    import ray

    return {name: found.partition("+")[0] for name, found in versions().items()} | {"ray": ray.__version__}


def _remote_class() -> type:
    """Return the class of the actors. It is pickled by value, so a node without this package can report the problem."""

    class Remote:
        def begin(self, state: bytes, required: Mapping[str, str]) -> tuple[str, str | None]:
            """Return the node, and the reason why it cannot run tasks, or None."""
            import os
            import socket

            try:
                from s2robot.core import ray as on_ray
            except ImportError as error:
                return socket.gethostname(), f"s2robot is not installed there ({error})"
            os.environ.update(on_ray.pools.ONE_THREAD | os.environ)
            here = on_ray.installed()
            other = {name: v for name, v in required.items() if here.get(name) != v}
            differ = [f"{name} {v}, got {here.get(name)}" for name, v in other.items()]
            self.state: Any = None if differ else on_ray.pools.State(state)
            return socket.gethostname(), f"expected {'; '.join(differ)}" if differ else None

        def call(self, function: Callable, args: tuple) -> tuple[Any, Exception | None]:
            try:
                return self.state.call(function, args), None
            except Exception as error:
                return None, error

    return Remote
