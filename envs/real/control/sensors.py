"""Readings of the arm and cameras, the resulting watchdog state, and the policy's answers."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.frames import ImageSize, size_of
from s2robot.envs.real.arms.driver import OK, ArmDriver, ArmState, Array
from s2robot.envs.real.cameras.camera import CameraReader, fitted
from s2robot.envs.real.control.clock import REAL, Clock
from s2robot.envs.real.control.watchdog import Inputs, State, Watchdog

POLL_S = 0.01  # s between two checks while waiting for all sensors


class Sensors:
    """One arm and its cameras; `state` is the arm's last reading, None before the first.

    A camera counts as frozen if its image stays the same for `frozen_s` while a joint moves by `frozen_motion`, rad.
    """

    def __init__(
        self, driver: ArmDriver, cameras: Mapping[str, CameraReader], watchdog: Watchdog,
        frozen_s: float = np.inf, frozen_motion: float = np.inf, clock: Clock = REAL, gripper: bool = True,
    ):  # fmt: skip
        self.driver, self.cameras, self.watchdog, self.clock = driver, dict(cameras), watchdog, clock
        self._frozen_s, self._frozen_motion, self._gripper = frozen_s, frozen_motion, gripper
        self.clear()

    def clear(self) -> None:
        """Drop all readings of the arm."""
        self.state: ArmState | None = None
        self._moves: deque[tuple[float, Array]] = deque()  # measured joints of the last seconds

    def watch(
        self, late: Callable[[float], float] = lambda now: 0.0, error: str = "", code: int = OK,
        live: bool = True, disagreement: float = 0.0,
    ) -> State:  # fmt: skip
        """Read the arm and update the watchdog.

        Args:
            late: returns by how much the policy's answer is overdue at a time, s.
            error, disagreement: of the policy, and between its members, rad.
            code: of the last command.
            live: whether to check the arm's mode.
        """
        lost = ""
        try:
            self.state = self.driver.read()
        except EnvError as failed:  # the age of the last reading shows for how long
            lost = f": {failed}"
        now, state, status = self.clock.now(), self.state, self.driver.status()
        if state is not None and (not self._moves or state.t_mono - self._moves[-1][0] >= 0.05):
            self._moves.append((state.t_mono, state.q))
            while self._moves and now - self._moves[0][0] > 2 * self._frozen_s:
                self._moves.popleft()
        inputs = Inputs(
            camera_age={name: reader.age(now) for name, reader in self.cameras.items()},
            state_age=np.inf if state is None else now - state.t_mono,
            policy_late=late(now), policy_error=error, disagreement=disagreement, code=code,
            error=(state.error if state is not None else 0) or status.error,
            mode=status.mode if live else self.watchdog.mode,
            connected=status.connected, report_age=status.report_age_s,
            frozen_cameras=tuple(filter(self._frozen, self.cameras)), state_error=lost,
        )  # fmt: skip
        return self.watchdog.update(now, inputs)

    def wait_ready(self, watch: Callable[[], State], seconds: float, who: str) -> ArmState:
        """Return the arm's state once READY. Raises EnvError, prefixed with `who`, on a fault, a failed camera or a timeout."""
        end = self.clock.now() + seconds
        while watch() != State.READY or self.state is None:
            ended = [f"camera {n}: {camera.error}" for n, camera in self.cameras.items() if camera.error]
            if self.watchdog.state == State.FAULT or ended or self.clock.now() > end:
                why = "; ".join((*self.watchdog.reasons, *ended)) or "no joints"
                raise EnvError(f"{who}: expected ready, got {self.watchdog.state.value} ({why})")
            self.clock.sleep(POLL_S)
        return self.state

    def observe(self, image_size: ImageSize) -> dict:
        """Return `images`, camera -> uint8 (H, W, 3) of `image_size`, and `proprio`, the newest joints and
        opening, float32 (N + 1,), or (N,) without a gripper."""
        assert self.state is not None  # as the watchdog requires
        return observation_of(self.state, self.cameras, image_size, self._gripper)

    def ages(self, now: float) -> np.ndarray:
        """Return the ages of the newest frames, s.  # float32 (cameras,)"""
        return np.array([reader.age(now) for reader in self.cameras.values()], np.float32)

    def _frozen(self, camera: str) -> bool:
        """Return whether a camera's image has stayed the same although the arm has moved."""
        frame = self.cameras[camera].latest()
        if frame is None or frame.t_capture - frame.t_change < self._frozen_s:
            return False
        joints = [q for t, q in self._moves if t >= frame.t_capture - self._frozen_s]
        return bool(joints) and bool(np.ptp(joints, axis=0).max() > self._frozen_motion)


def observation_of(
    state: ArmState, cameras: Mapping[str, CameraReader], image_size: ImageSize, gripper: bool
) -> dict:
    """Return the observation as `Sensors.observe` does, from a reading and from cameras that all have a frame."""
    images = {}
    for name, reader in cameras.items():
        frame = reader.latest()
        assert frame is not None
        images[name] = fitted(frame.image, size_of(image_size, name))
    proprio = np.append(state.q, [state.gripper] * gripper).astype(np.float32)
    return {"images": images, "proprio": proprio}


@dataclass(frozen=True)
class Answer:
    """The policy's answer to one observation. Times in s."""

    t_observed: float
    t_answered: float
    actions: np.ndarray | None  # float64 (k, A), finite: the next one, then planned ones; None after an error
    error: str  # one line; empty if there are actions


class PolicyWorker:
    """Runs `act(observation) -> action (A,)` or actions (k, A) of `size` numbers, one observation at a time, so that the stream
    to the arm never waits.

    It starts once the worker `before` has ended: the policy never runs in two threads. If the policy hangs, its thread stays.
    """

    def __init__(
        self, act: Callable[[dict], Any], size: int, clock: Clock = REAL, before: "PolicyWorker | None" = None
    ):
        self._act, self._size, self._clock, self._before = act, size, clock, before
        self._changed = clock.condition()
        self._request: tuple[float, dict] | None = None
        self._since: float | None = None  # s, observation time of the current request
        self._answer: Answer | None = None
        self._ended = False
        self._thread = clock.spawn(self._run, "policy")

    def submit(self, t_observed: float, observation: dict) -> None:
        """Submit an observation; not allowed while `busy`."""
        with self._changed:
            self._request, self._since = (t_observed, observation), t_observed
            self._changed.notify_all()

    def take(self, timeout_s: float = 0.0) -> Answer | None:
        """Wait for the answer and return it, once; None if there is none."""
        with self._changed:
            if timeout_s:
                self._changed.wait_for(lambda: self._answer is not None, timeout_s)
            answer, self._answer = self._answer, None
            return answer

    def busy_for(self, now: float) -> float:
        """Return for how long the policy has been processing an observation, s; 0 if there is none."""
        since = self._since
        return 0.0 if since is None else max(0.0, now - since)

    @property
    def busy(self) -> bool:
        """Whether an observation is being processed, or an answer is waiting."""
        with self._changed:
            return self._since is not None or self._answer is not None

    def close(self) -> None:
        """End the thread as soon as the policy returns."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _run(self) -> None:
        if self._before is not None:
            self._before._thread.join()
            self._before = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._request is not None or self._ended)
                if self._ended:
                    return
                assert self._request is not None
                (t_observed, observation), self._request = self._request, None
            actions, error = None, ""
            try:
                answer = np.asarray(self._act(observation))
                fits = answer.ndim in (1, 2) and answer.size > 0 and answer.shape[-1] == self._size
                if not fits or answer.dtype.kind not in "fiu":
                    error = f"expected {self._size} numbers, got an action {answer.dtype} {answer.shape}"
                elif not np.isfinite(answer := answer.astype(float)).all():
                    error = f"expected finite numbers, got action {answer.tolist()}"
                else:
                    actions = np.atleast_2d(answer)
            except BaseException as failure:  # any exception of the policy must stop the arm, not this thread
                error = f"{type(failure).__name__}: {failure}".splitlines()[0]
            with self._changed:
                self._answer = Answer(t_observed, self._clock.now(), actions, error)
                self._since = None
                self._changed.notify_all()
