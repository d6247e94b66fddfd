"""The control loop: from observations to a stream of commands while the arm moves.

A hundred times a second, the loop reads the arm, updates the watchdog, interpolates the next joints, filters and sends
them. Ten times a second, the policy gets images and joints in a separate thread; its answer becomes the next waypoint,
due one period later. Without `live`, the loop does all of this except sending.

A period begins when the last command was sent or, if the connection stalled, when it was answered. The loop never catches
up after a delay: two commands less than a period apart would move the arm faster than the filter allows. After a gap of
0.05 s, or two periods if longer, the stream starts from rest, as the arm does. If a gap is longer than the arm's answers
can explain, this process was suspended or the machine slept: the loop raises a fault before the next command.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import OK, ArmDriver
from s2robot.envs.real.cameras.camera import CameraReader
from s2robot.envs.real.control.clock import REAL, Clock
from s2robot.envs.real.control.safety import Safe, SafetyFilter, Verdict
from s2robot.envs.real.control.sensors import Answer, PolicyWorker, Sensors
from s2robot.envs.real.control.stream import CommandStream, LoopConfig
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.control.watchdog import UNSURE, State, Watchdog, WatchdogLimits

STOOD_S = 0.05  # s without a command, after which the arm is at rest at its last one
SETTLE_S = 0.1  # s after braking until the arm has settled
PRESSES = 5e-3  # rad between the last command and an arm at rest: from here on, something blocks it
RELEASE_S = 1.0  # s allowed for moving back from there


@dataclass
class Result:
    state: State  # IDLE after a regular end; FAULT with the reasons
    reasons: tuple[str, ...]
    cause: str  # "steps", "ended", "stopped" or "fault"
    steps: int  # actions executed
    periods: np.ndarray = field(default_factory=lambda: np.zeros(0))  # s between commands
    latencies: np.ndarray = field(default_factory=lambda: np.zeros(0))  # s from observation to answer


@dataclass
class _Episode:
    """The current episode. Times in s, monotonic."""

    max_steps: int
    void_before: float  # answers to older observations are dropped
    next_tick: float  # when the next observation is due
    acted: float  # when the last action was accepted
    alive: float  # when a command was last about to be sent
    cause: str = ""  # of the episode's end, once known
    unsure: bool = False  # the arm holds because the members disagree
    sent_last: float = -np.inf
    work: float = 0.0  # s, moving average of the computing time per period
    sent: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


class ControlLoop:
    """One arm, its cameras and a policy; `steps` counts the actions accepted in this or the last episode.

    Args:
        driver: connected and, for `live`, armed.
        cameras: name -> started reader, in the policy's order.
        act: observation -> action: deltas (N,) from the last commanded joints, rad (joints with `config.absolute`), and for a
            gripper one value: a binary one closes at 0.5 and above, a continuous one moves to an opening, 0 closed to 1 open.
            Or actions (k, A): the next one and those planned after it, which `check_chunks` validates.
        disagreement: between the policy's members about its last action, rad.
    """

    def __init__(
        self, driver: ArmDriver, cameras: Mapping[str, CameraReader], act: Callable[[dict], np.ndarray],
        safety: SafetyFilter, config: LoopConfig | None = None, limits: WatchdogLimits | None = None,
        subscribers: Sequence[Subscriber] = (), clock: Clock = REAL,
        disagreement: Callable[[], float] = lambda: 0.0,
    ):  # fmt: skip
        self.driver, self.safety, self.clock, self.disagreement = driver, safety, clock, disagreement
        self.config = config = config or LoopConfig()
        self.watchdog = Watchdog(limits or WatchdogLimits(), driver.armed_mode)
        grips = config.gripper is not None
        self._size = driver.limits.joints + grips
        self.sensors = Sensors(
            driver, cameras, self.watchdog, config.frozen_s, config.frozen_motion, clock, grips
        )
        self.stream = CommandStream(driver.limits, safety, config)
        self.subscribers = list(subscribers)  # notified of each event in this order
        self._act = act
        self._worker: PolicyWorker | None = None  # of the last episode
        # plain values: a signal could interrupt code that holds an Event's lock
        self.stop_requested = False  # reset only by the caller that arms the arm again
        self._end = False
        self.period = 1 / config.policy_hz
        # state of the current episode
        self.steps = 0
        self._observed: dict = {}  # the policy's last observation
        self._code, self._policy_error = OK, ""

    def request_stop(self) -> None:
        """End this episode, and any other until `stop_requested` is reset, and stop the arm; from any thread, at any time."""
        self.stop_requested = True

    def request_end(self) -> None:
        """End the episode as after its last step: the arm brakes and stays ready; from any thread."""
        self._end = True

    def run(self, max_steps: int) -> Result:
        """Run one episode. The arm is at rest afterwards; after a fault or a stop it is also stopped.

        Raises EnvError before any motion if the arm is outside its limits, the policy does not answer, or readings are stale.
        """
        self._end = False
        self.steps = 0
        worker = self._worker = PolicyWorker(self._act, self._size, self.clock, self._worker)
        try:
            try:
                self._prepare(worker)
            except EnvError:
                if not self.stop_requested or self.watchdog.state == State.FAULT:  # a fault stays one
                    raise
                self.watchdog.pause(self.clock.now())
                if self.config.live:
                    self.driver.stop("operator")
                return Result(self.watchdog.state, self.watchdog.reasons, "stopped", 0)
            now = self.clock.now()
            episode = _Episode(max_steps, now, now, now, now)
            self.watchdog.start(now)
            while not episode.cause:
                self._period(episode, worker)
            self._come_to_rest(episode)
            self._finish_step()
            self.notify("on_period", self.clock.now(), self.watchdog.state, None)
            return Result(
                self.watchdog.state, self.watchdog.reasons, episode.cause, self.steps,
                np.diff(episode.sent), np.array(episode.latencies),
            )  # fmt: skip
        except BaseException as error:
            if isinstance(error, Exception) and self.watchdog.state in (State.RUNNING, State.HOLD):
                self.watchdog.fault(self.clock.now(), str(error))
            if self.config.live:
                self.driver.stop(f"{type(error).__name__} in the loop")
            raise
        finally:
            worker.close()

    def _prepare(self, worker: PolicyWorker) -> None:
        """Wait for fresh readings, warm up the policy, and reset filter and path to the arm's joints.

        Raises EnvError if something is missing, or a stop is requested meanwhile.
        """
        config, self._code, self._policy_error = self.config, OK, ""

        def watch() -> State:
            if self.stop_requested:
                raise EnvError("loop: stopped before the policy's first action; nothing has moved")
            self.notify("on_beat")  # the arm is enabled, so a suspension must stop it
            return self._watch(worker)

        self.sensors.clear()
        self.sensors.wait_ready(watch, config.ready_s, "loop")
        worker.submit(self.clock.now(), self.sensors.observe(config.image_size))
        end, answer = self.clock.now() + config.warm_up_s, None
        while answer is None and not self.stop_requested and (left := end - self.clock.now()) > 0:
            self.notify("on_beat")
            answer = worker.take(min(left, 0.1))
        if answer is None or answer.error:
            why = answer.error if answer else f"no answer within {config.warm_up_s:g} s"
            raise EnvError(f"policy: {why}; nothing has moved")
        # again: frames may have become stale during the policy's first, slow answer
        self.stream.start(self.sensors.wait_ready(watch, config.ready_s, "loop").q)
        self.notify("on_begin")

    def _period(self, episode: _Episode, worker: PolicyWorker) -> None:
        """Wait for the period to begin, then read, decide and send; or set the cause of the episode's end."""
        dt, clock = self.safety.dt, self.clock
        clock.sleep(episode.sent_last + dt - episode.work - clock.now())
        begin = clock.now()
        self.notify("on_beat")
        if self.stop_requested or self._end:
            episode.cause = "stopped" if self.stop_requested else "ended"
            return
        answer = worker.take()
        if answer is not None and answer.error:
            self._policy_error = answer.error
        state = self._watch(worker)
        now = clock.now()
        if now - episode.sent_last > max(STOOD_S, 2 * dt):  # one late period is no rest
            self.stream.resume_from_rest()
        limit = self.watchdog.limits.hold_fault
        if self.steps < episode.max_steps and now - episode.acted > limit:
            # a policy that is always slightly late: each answer arrives during another HOLD and is dropped
            why = f": {UNSURE}" if self.watchdog.reasons == (UNSURE,) else ""
            self.watchdog.fault(now, f"no action for {limit:g} s{why}")
            state = self.watchdog.state
        safe = None if state == State.FAULT else self._decide(episode, now, state, answer, worker)
        if safe is None:
            episode.cause = "fault" if self.watchdog.state == State.FAULT else "steps"
            return
        episode.work += 0.1 * (clock.now() - begin - episode.work)
        clock.sleep(episode.sent_last + dt - clock.now())
        if self._was_suspended(episode):
            episode.cause = "fault"
            return
        self._send(episode, safe)
        self.notify("on_period", now, state, safe)
        if safe.verdict == Verdict.STOP:
            self.watchdog.fault(now, f"safety stop: {safe.reasons[0]}")
            episode.cause = "fault"

    def _was_suspended(self, episode: _Episode) -> bool:
        """Return whether this process was suspended, and latch a fault if so: it must not move the arm then."""
        now, limits = self.clock.now(), self.watchdog.limits
        gap, episode.alive = now - episode.alive, now
        assert self.sensors.state is not None
        why = f"the control loop did not run for {gap:.1f} s" if gap > limits.gap else ""
        if not why and now - self.sensors.state.t_mono > limits.state_fault:
            why = "joint state is gone"
        if why:
            self.watchdog.fault(now, why)
        return bool(why)

    def _decide(
        self, episode: _Episode, now: float, state: State, answer: Answer | None, worker: PolicyWorker
    ) -> Safe | None:
        """Return what to send in this period; None when the last step is done. Submit an observation when one is due."""
        measured = self.sensors.state
        assert measured is not None
        if answer is not None and (state == State.HOLD or answer.t_observed < episode.void_before):
            answer = None
            self.notify("on_drop")
        if state == State.HOLD:
            unsure = self.watchdog.reasons == (UNSURE,)
            submits = unsure and now >= episode.next_tick and not worker.busy
            if submits:
                self._submit(now, worker)  # the hold ends once the members agree on a new observation
                episode.next_tick = now + self.period
            elif not unsure:
                episode.next_tick = now
            if submits or not (unsure and episode.unsure):  # else the answer ending the hold would be dropped
                episode.void_before = now
            episode.unsure = unsure
            return self.stream.hold(now, measured, self.watchdog.reasons[0])
        episode.unsure = False
        if answer is not None and answer.actions is not None:
            if self.config.check_chunks and (why := self.stream.chunk_problem(answer.actions, measured)):
                self.watchdog.fault(now, why)
                return None
            episode.latencies.append(answer.t_answered - answer.t_observed)
            self._finish_step()
            ages = self.sensors.ages(now)
            self.stream.take(now, answer.actions[0], measured, self._observed, answer.t_observed, ages)
            self.steps, episode.acted = self.steps + 1, now
        if now >= episode.next_tick and self.steps < episode.max_steps and not worker.busy:
            self._submit(now, worker)
            # of two observations in quick succession, the second would not show the effect of the first action
            on_time = now - episode.next_tick < self.period / 2
            episode.next_tick = (episode.next_tick if on_time else now) + self.period
        safe, arrived = self.stream.next(now, measured)
        return None if self.steps >= episode.max_steps and arrived else safe

    def _submit(self, now: float, worker: PolicyWorker) -> None:
        self._observed = self.sensors.observe(self.config.image_size)
        worker.submit(now, self._observed)

    def _send(self, episode: _Episode, safe: Safe) -> None:
        self._code, episode.sent_last = OK, self.clock.now()
        if self.config.live:
            done = self.driver.command(safe.q, safe.gripper)
            self._code, episode.sent_last = done.code, done.t_heard
        episode.sent.append(episode.sent_last)
        self.stream.note(safe, self._code)

    def _watch(self, worker: PolicyWorker) -> State:
        return self.sensors.watch(
            lambda now: max(0.0, worker.busy_for(now) - self.period), self._policy_error, self._code,
            self.config.live, self.disagreement(),
        )  # fmt: skip

    def _come_to_rest(self, episode: _Episode) -> None:
        """Stop after a fault; brake otherwise, and stop if that was requested."""
        live = self.config.live
        if episode.cause == "fault":
            if live:
                self.driver.stop("; ".join(self.watchdog.reasons))
            return
        self._brake(episode)
        if live and episode.sent and not self.stop_requested and self.watchdog.state != State.FAULT:
            self._release(episode)
        if self.stop_requested:  # possibly during the braking
            episode.cause = "stopped"
        if live and episode.cause == "stopped":
            self.driver.stop("operator")
        self.watchdog.pause(self.clock.now())

    def _brake(self, episode: _Episode) -> None:
        """Brake to rest along the path that the filter has checked."""
        while self.safety.dq_last.any() and self.watchdog.state != State.FAULT:
            self._send_at_end(episode, lambda: (self.safety.hold("end of the episode"), True))

    def _release(self, episode: _Episode) -> None:
        """Move the command, still filtered, to the measured joints if they differ: the arm is pressing on something."""
        self.clock.sleep(SETTLE_S)
        self.notify("on_beat")
        try:
            state = self.driver.read()
        except EnvError:  # the next start reports an arm that does not answer
            return
        begin = self.clock.now()
        arrived = bool(np.abs(state.q - self.safety.q_last).max() < PRESSES + self.driver.slack)
        self.stream.release(begin, state.q)
        while not (arrived or self.stop_requested or self.clock.now() - begin > RELEASE_S):
            arrived = self._send_at_end(episode, partial(self.stream.next, self.clock.now(), state))
            if self.watchdog.state == State.FAULT:
                return
            with suppress(EnvError):  # the filter holds when the last state is old
                state = self.driver.read()
        self._brake(episode)

    def _send_at_end(self, episode: _Episode, make: Callable[[], tuple[Safe, bool]]) -> bool:
        """Send a command after the episode's last one; a gap, an error code or a stop of the filter is a fault. `make` returns
        the command and whether it is at its goal, which is returned."""
        self.clock.sleep(episode.sent_last + self.safety.dt - self.clock.now())
        self.notify("on_beat")
        now, why = self.clock.now(), ""
        gap, episode.sent_last = now - episode.sent_last, now
        if gap > max(STOOD_S, 2 * self.safety.dt):
            self.stream.resume_from_rest()
        safe, arrived = make()
        if gap > self.watchdog.limits.gap:  # this process did not run: it must not move the arm now
            why = f"the control loop did not run for {gap:.1f} s"
        elif self.config.live:
            done = self.driver.command(safe.q, None)
            episode.sent_last = done.t_heard
            why = f"command code {done.code}" if done.code != OK else ""
        if why or safe.verdict == Verdict.STOP:
            self.watchdog.fault(now, why or f"safety stop: {safe.reasons[0]}")
            if self.config.live:
                self.driver.stop("; ".join(self.watchdog.reasons))
        return arrived

    def _finish_step(self) -> None:
        step = self.stream.finish()
        if step is not None:
            self.notify("on_step", step)

    def notify(self, event: str, *values: Any) -> None:
        """Call a method of every subscriber, in order."""
        for subscriber in self.subscribers:
            getattr(subscriber, event)(*values)
