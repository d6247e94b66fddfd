"""From observations to a stream of commands: what runs while the arm moves.

    loop = ControlLoop(driver, cameras, policy.act, safety, LoopConfig(live=True))
    result = loop.run(max_steps=80)      # one episode; loop.request_stop() from another thread ends it
    result.state, result.reasons

A hundred times a second: read the arm, ask the watchdog, let the interpolator make the next joints, filter them,
send them. Ten times a second: cameras and joints go to the policy, in a thread of its own; its answer becomes the
next waypoint, due a period later. Without `live` all of this happens but for the sending.

A period begins when the last command was sent, or, after a stall of the wire, when it was answered. A late one is
never caught up with: two commands closer together than a period would move the arm faster than the filter allowed.
After a long gap the stream begins from rest, as the arm does.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import OK, ArmDriver, ArmState, Array
from s2robot.envs.real.cameras.camera import CameraReader, square
from s2robot.envs.real.control.interpolate import Interpolator
from s2robot.envs.real.control.policy_worker import PolicyWorker
from s2robot.envs.real.control.safety import Safe, SafetyFilter, Verdict
from s2robot.envs.real.control.watchdog import Inputs, State, Watchdog, WatchdogLimits

STOOD_S = 0.05  # s without a command, after which the arm has come to rest at its last one


@dataclass(frozen=True)
class LoopConfig:
    """How the loop runs."""

    live: bool = False  # False: everything but sending
    policy_hz: float = 10.0  # observations a second, as in the demos
    image_size: int = 256  # pixels, as the policy wants them
    max_delta: float = 0.25  # rad an action may move a joint, as in the simulated world
    ready_s: float = 5.0  # s to wait for fresh frames and joints before an episode
    gripper_hold: int = 0  # so many actions after a gripper command cannot reverse it
    warm_up_s: float = 30.0  # s that the policy's first answer may take, before motion begins
    frozen_s: float = 1.0  # s that a picture may stay the same ...
    frozen_motion: float = 0.05  # rad ... while a joint moves so far
    mode: int = 1  # the arm's mode while it is ours


@dataclass
class Result:
    """How an episode ended."""

    state: State  # IDLE after a regular end; FAULT with the reasons
    reasons: tuple[str, ...]
    cause: str  # "steps", "ended", "stopped" or "fault"
    steps: int  # actions executed
    verdicts: dict[str, int] = field(default_factory=dict)  # how many commands had each
    periods: np.ndarray = field(default_factory=lambda: np.zeros(0))  # s between commands
    latencies: np.ndarray = field(default_factory=lambda: np.zeros(0))  # s from observation to answer


class ControlLoop:
    """One arm, its cameras and a policy.

    Args:
        driver: connected and, for `live`, armed.
        cameras: name -> started reader, in the policy's order.
        act: observation -> action (8,), as in the contract: joint deltas against the last commanded joints, rad,
            and the gripper command (0.5 and above closes).
        reset: called before an episode, after the policy has been warmed up.
        safety: the filter.
        config, limits: see there.
        beat: called every period; the supervisor's heartbeat.
        on_step: called with each executed step, a dict of arrays (see `s2robot.envs.real.control.recorder`).
        on_period: called every period with (now, state of the watchdog, filter's answer or None); for a panel.
    """

    def __init__(
        self,
        driver: ArmDriver,
        cameras: Mapping[str, CameraReader],
        act: Callable[[dict], np.ndarray],
        safety: SafetyFilter,
        config: LoopConfig | None = None,
        limits: WatchdogLimits | None = None,
        reset: Callable[[], None] = lambda: None,
        beat: Callable[[], None] = lambda: None,
        on_step: Callable[[dict], None] = lambda step: None,
        on_period: Callable[[float, State, Safe | None], None] = lambda now, state, safe: None,
    ):
        self.driver, self.cameras, self.safety = driver, dict(cameras), safety
        self.config = config or LoopConfig()
        self.watchdog = Watchdog(limits or WatchdogLimits(), self.config.mode)
        self.path = Interpolator(driver.limits)
        self._act, self._reset = act, reset
        self._acting = threading.Lock()  # a policy that hung in an earlier episode may still be at it
        self._beat, self._on_step, self._on_period = beat, on_step, on_period
        # a plain value: an Event's lock could be held by the code that a signal interrupts
        self._stop = False
        self._end = threading.Event()
        self.period = 1 / self.config.policy_hz
        # of the episode under way
        self._state: ArmState | None = None  # read last
        self._moves: deque[tuple[float, Array]] = deque()  # measured joints of the last seconds
        self._observed: dict = {}  # what the policy was given last
        self._commanded = self.path.q  # (7,) rad, last waypoint
        self._opening: float | None = None  # gripper, wanted
        self._turned = 0  # actions since that was another
        self._clamped = False  # whether the filter changed anything since the last action
        self._code, self._policy_error = OK, ""
        self._step: dict | None = None  # being executed

    def request_stop(self) -> None:
        """End the episode with the arm braked and stopped; from any thread, or a signal handler.

        Between two episodes it ends the next one before anything moves: a stop is never lost.
        """
        self._stop = True

    def request_end(self) -> None:
        """End the episode as after its last step: the arm brakes and stays ready; from any thread."""
        self._end.set()

    @property
    def commanded(self) -> Array:
        """The joints (7,) rad that the next action's deltas are added to; not where the stream is on its way."""
        return self.path.q if self._clamped else self._commanded

    # ---------------------------------------------------------------- an episode

    def run(self, max_steps: int) -> Result:
        """One episode. The arm is at rest when it returns; after a fault or a stop it is stopped as well.

        Raises:
            EnvError: the arm is outside its limits, the policy gives no first answer, or frames or joints are
                not fresh. Nothing has moved then.
        """
        self._end.clear()
        worker = PolicyWorker(self._act_alone)
        try:
            self._prepare(worker)
            return self._run(worker, max_steps)
        except BaseException as error:
            if self.config.live:
                self.driver.stop(f"{type(error).__name__} in the loop")
            raise
        finally:
            self._stop = False
            worker.close()

    def _prepare(self, worker: PolicyWorker) -> None:
        """Everything fresh, the policy warm, filter and path at the arm's joints."""
        self._state, self._code, self._policy_error = None, OK, ""
        self._moves.clear()
        self._wait_ready(worker)
        now = time.monotonic()
        worker.submit(now, self._observe())
        answer = worker.wait(self.config.warm_up_s)
        if answer is None or answer.error:
            why = answer.error if answer else f"no answer within {self.config.warm_up_s:g} s"
            raise EnvError(f"policy: {why}; nothing has moved")
        self._reset()
        # again: what the first answer took from the computer may have made frames stale
        self._wait_ready(worker)
        assert self._state is not None
        self.safety.reset(self._state.q)
        self._rest_at(self._state.q)
        self._opening, self._clamped, self._step = None, False, None
        self._turned = 0

    def _wait_ready(self, worker: PolicyWorker) -> None:
        end = time.monotonic() + self.config.ready_s
        while self._watch(worker) != State.READY:
            if self.watchdog.state == State.FAULT or time.monotonic() > end:
                why = "; ".join(self.watchdog.reasons) or "no joints"
                raise EnvError(f"loop: found {self.watchdog.state.value} ({why}), expected ready")
            time.sleep(0.01)

    def _run(self, worker: PolicyWorker, max_steps: int) -> Result:
        dt, live = self.safety.dt, self.config.live
        verdicts: dict[str, int] = {}
        sent: list[float] = []
        latencies: list[float] = []
        steps, cause = 0, "steps"
        sent_last, work = -np.inf, 0.0  # s, moving average of what a period's work takes
        void_before = next_tick = time.monotonic()  # answers to older observations are not wanted
        self.watchdog.start(time.monotonic())
        acted = time.monotonic()  # s, the last action was taken up
        while True:
            time.sleep(max(0.0, sent_last + dt - work - time.monotonic()))
            begin = time.monotonic()
            self._beat()
            if self._stop:
                cause = "stopped"
                break
            if self._end.is_set():
                cause = "ended"
                break
            answer = worker.take()
            if answer is not None and answer.error:
                self._policy_error = answer.error
            state, now = self._watch(worker), time.monotonic()
            if now - sent_last > STOOD_S:
                self.safety.rest()
                self.path.follow(self.safety.q_last, self.safety.dq_last)
            if steps < max_steps and now - acted > self.watchdog.limits.hold_fault:
                # a policy that is always a little late: each answer comes in a HOLD of its own, and is void
                self.watchdog.fault(now, f"no action for {self.watchdog.limits.hold_fault:g} s")
                state = self.watchdog.state
            if state == State.FAULT:
                cause = "fault"
                break
            if state == State.HOLD:
                safe = self.safety.hold(self.watchdog.reasons[0])
                self._rest_at(safe.q)
                void_before, next_tick, answer = now, now, None
            else:
                if answer is not None and answer.action is not None and answer.t_observed >= void_before:
                    latencies.append(answer.t_answered - answer.t_observed)
                    self._take_action(now, answer.action, answer.t_observed)
                    steps, acted = steps + 1, now
                if now >= next_tick and steps < max_steps and not worker.busy:
                    self._observed = self._observe()
                    worker.submit(now, self._observed)
                    # two observations in a row would not show what the first action did
                    on_time = now - next_tick < self.period / 2
                    next_tick = next_tick + self.period if on_time else now + self.period
                safe, arrived = self._next(now)
                if steps >= max_steps and arrived:
                    break
            work += 0.1 * (time.monotonic() - begin - work)
            time.sleep(max(0.0, sent_last + dt - time.monotonic()))
            code, sent_last = OK, time.monotonic()
            if live:
                done = self.driver.command(safe.q, safe.gripper)
                code, sent_last = done.code, done.t_heard
            self._code = code
            sent.append(sent_last)
            verdicts[safe.verdict.name] = verdicts.get(safe.verdict.name, 0) + 1
            self._note(safe, code)
            self._on_period(now, state, safe)
            if safe.verdict == Verdict.STOP:
                self.watchdog.fault(now, f"safety stop: {safe.reasons[0]}")
                cause = "fault"
                break
        if cause == "fault":
            if live:
                self.driver.stop("; ".join(self.watchdog.reasons))
        else:
            self._brake(sent_last)
            cause = "stopped" if self._stop else cause  # also one that came in the last moment
            if live and cause == "stopped":
                self.driver.stop("operator")
            elif live and self.watchdog.state != State.FAULT:
                with suppress(EnvError):  # an arm that does not answer shows at the next start
                    self.driver.hold()  # where it is, not where it was sent: it no longer presses on anything
            self.watchdog.pause(time.monotonic())
        self._finish_step()
        self._on_period(time.monotonic(), self.watchdog.state, None)
        periods, latency = np.diff(sent), np.array(latencies)
        return Result(self.watchdog.state, self.watchdog.reasons, cause, steps, verdicts, periods, latency)

    def _brake(self, last: float) -> None:
        """To rest, in periods, along the way that the filter has checked."""
        while self.safety.dq_last.any():
            time.sleep(max(0.0, last + self.safety.dt - time.monotonic()))
            safe = self.safety.hold("end of the episode")
            last = time.monotonic()
            self._beat()
            if self.config.live:
                done = self.driver.command(safe.q, None)
                last = done.t_heard
                if done.code != OK:
                    self.watchdog.fault(last, f"command code {done.code}")
                    self.driver.stop(f"command code {done.code}")
                    return

    def _act_alone(self, observation: dict) -> np.ndarray:
        """The policy, never in two threads at once: a second one waits, and the episode does not begin."""
        with self._acting:
            return self._act(observation)

    # ---------------------------------------------------------------- in a period

    def _watch(self, worker: PolicyWorker) -> State:
        """Read the arm and update the watchdog."""
        failed = ""
        try:
            self._state = self.driver.read()
        except EnvError as error:  # its age tells how long that has been so
            failed = str(error)
        now, state, status = time.monotonic(), self._state, self.driver.status()
        if state is not None and not failed:
            if not self._moves or now - self._moves[-1][0] >= 0.05:
                self._moves.append((now, state.q))
                while now - self._moves[0][0] > 2 * self.config.frozen_s:
                    self._moves.popleft()
        return self.watchdog.update(
            now,
            Inputs(
                camera_age={name: reader.age(now) for name, reader in self.cameras.items()},
                state_age=np.inf if state is None else now - state.t_mono,
                policy_late=max(0.0, worker.busy_for(now) - self.period),
                policy_error=self._policy_error,
                code=self._code,
                error=(state.error if state is not None else 0) or status.error,
                mode=self.watchdog.mode if not self.config.live else status.mode,
                connected=status.connected,
                report_age=status.report_age_s,
                frozen_cameras=self._frozen(),
            ),
        )

    def _frozen(self) -> tuple[str, ...]:
        """Cameras whose picture has stayed the same although the arm has moved."""
        found = []
        for name, reader in self.cameras.items():
            frame = reader.latest()
            if frame is None or frame.t_capture - frame.t_change < self.config.frozen_s:
                continue
            joints = [q for t, q in self._moves if t >= frame.t_capture - self.config.frozen_s]
            if joints and np.ptp(joints, axis=0).max() > self.config.frozen_motion:
                found.append(name)
        return tuple(found)

    def _observe(self) -> dict:
        """The contract's observation: newest frames, measured joints."""
        assert self._state is not None
        images = {}
        for name, reader in self.cameras.items():
            frame = reader.latest()
            assert frame is not None  # the watchdog let nobody get here without
            images[name] = square(frame.image, self.config.image_size)
        proprio = np.append(self._state.q, self._state.gripper).astype(np.float32)
        return {"images": images, "proprio": proprio}

    def _take_action(self, now: float, action: np.ndarray, t_observed: float) -> None:
        """An action becomes the next waypoint."""
        self._finish_step()
        state = self._state
        assert state is not None
        if not self.config.live:  # the arm has not moved: what would be sent starts where it stands
            self.safety.reset(state.q)
            self._rest_at(state.q)
        elif self._clamped:  # what the filter did not let through is not owed
            self._commanded = self.path.q
        limits = self.driver.limits
        delta = np.clip(action[:7], -self.config.max_delta, self.config.max_delta)
        low, high = np.add(limits.q_min, limits.margin), np.subtract(limits.q_max, limits.margin)
        opening = 0.0 if action[7] >= 0.5 else 1.0
        self._turned += 1
        if opening != self._opening and (self._opening is None or self._turned > self.config.gripper_hold):
            # sooner, it would be judged by fingers that have not moved yet, and be reversed to and fro
            self._opening, self._turned = opening, 0
        wanted = self.safety.above_table(np.clip(self._commanded + delta, low, high))
        before, self._commanded = self._commanded, wanted
        self.path.push(now, now + self.period, self._commanded)
        self._clamped = False
        ages = [reader.age(now) for reader in self.cameras.values()]
        self._step = {
            **{f"images_{name}": image for name, image in self._observed["images"].items()},
            "proprio": self._observed["proprio"],
            "action": np.append(self._commanded - before, float(self._opening == 0)).astype(np.float32),
            "action_raw": action.astype(np.float32),
            "time": t_observed,
            "time_action": now,
            "verdict": np.uint8(Verdict.PASS),
            "code": np.int32(OK),
            "camera_age": np.array(ages, np.float32),
            "start": self.safety.q_last,
        }

    def _next(self, now: float) -> tuple[Safe, bool]:
        """The stream's next joints, filtered; whether it rests and nothing more is due."""
        state = self._state
        assert state is not None
        q, late = self.path.step(now)
        measured = state.q if self.config.live else self.safety.q_last
        safe = self.safety(q, self._opening, measured, now - state.t_mono)
        if safe.verdict != Verdict.PASS:
            self.path.follow(safe.q, self.safety.dq_last)
            self._clamped = True
        return safe, late and not self.safety.dq_last.any()

    def _rest_at(self, q: Array) -> None:
        self.path.reset(q)
        self._commanded = q

    def _note(self, safe: Safe, code: int) -> None:
        """The worst that happened in a step."""
        if self._step is not None:
            self._step["verdict"] = np.uint8(max(self._step["verdict"], safe.verdict))
            if code != OK:
                self._step["code"] = np.int32(code)

    def _finish_step(self) -> None:
        if self._step is not None:
            step, self._step = self._step, None
            moved = self.safety.q_last - step.pop("start")
            step["action_sent"] = np.append(moved, step["action"][7]).astype(np.float32)
            self._on_step(step)
