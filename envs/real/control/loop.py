"""From observations to a stream of commands: what runs while the arm moves.

A hundred times a second: read the arm, ask the watchdog, let the interpolator make the next joints, filter them,
send them. Ten times a second: cameras and joints go to the policy, in a thread of its own; its answer becomes the
next waypoint, due a period later. Without `live` all of this happens but for the sending.

A period begins when the last command was sent, or, after a stall of the wire, when it was answered. A late one is
never caught up with: two commands closer together than a period would move the arm faster than the filter allowed.
After a gap of 0.05 s the stream begins from rest, as the arm does. After one that no answer of the arm explains, this
process was suspended or its machine slept: a fault, before the next command.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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

__all__ = ["STOOD_S", "ControlLoop", "LoopConfig", "Result"]

STOOD_S = 0.05  # s without a command, after which the arm has come to rest at its last one
SETTLE_S = 0.1  # s after braking until the arm stands where it will
PRESSES = 5e-3  # rad between the last command and an arm that stands: something holds it
RELEASE_S = 1.0  # s that moving back from there may take


@dataclass
class Result:
    state: State  # IDLE after a regular end; FAULT with the reasons
    reasons: tuple[str, ...]
    cause: str  # "steps", "ended", "stopped" or "fault"
    steps: int  # actions executed
    verdicts: dict[str, int] = field(default_factory=dict)  # how many commands had each
    periods: np.ndarray = field(default_factory=lambda: np.zeros(0))  # s between commands
    latencies: np.ndarray = field(default_factory=lambda: np.zeros(0))  # s from observation to answer


@dataclass
class _Episode:
    """The episode under way. Times in s, monotonic."""

    max_steps: int
    void_before: float  # answers to older observations are not wanted
    next_tick: float  # when the next observation is due
    acted: float  # the last action was taken up
    alive: float  # the last time that a command was about to be sent
    cause: str = ""  # of its end, once it has one
    unsure: bool = False  # it holds because the members disagree
    sent_last: float = -np.inf
    work: float = 0.0  # s, moving average of what a period's work takes
    verdicts: Counter[str] = field(default_factory=Counter)
    sent: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


class ControlLoop:
    """One arm, its cameras and a policy; `steps` counts the actions taken up in this or the last episode.

    Args:
        driver: connected and, for `live`, armed.
        cameras: name -> started reader, in the policy's order.
        act: observation -> action: deltas (N,) of the last commanded joints, rad (joints with `config.absolute`), and what moves the
            gripper, if there is one: 0.5 and above closes a binary one, and a continuous one goes to an opening, 0 closed to 1 open.
            Or actions (k, A), the next and those planned after it, which `check_chunks` looks at.
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
        self.subscribers = list(subscribers)  # each hears of an event in this order
        self._act = act
        self._worker: PolicyWorker | None = None  # of the last episode
        # plain values: an Event's lock could be held by the code that a signal interrupts
        self.stop_requested = False  # until whoever arms the arm again drops it
        self._end = False
        self.period = 1 / config.policy_hz
        # of the episode under way
        self.steps = 0
        self._observed: dict = {}  # what the policy was given last
        self._code, self._policy_error = OK, ""

    def request_stop(self) -> None:
        """End this episode, and each until `stop_requested` is reset, with the arm stopped; from anywhere, at any time."""
        self.stop_requested = True

    def request_end(self) -> None:
        """End the episode as after its last step: the arm brakes and stays ready; from any thread."""
        self._end = True

    def run(self, max_steps: int) -> Result:
        """Run one episode. The arm is at rest afterwards; after a fault or a stop it is stopped as well.

        Raises EnvError, before anything moves: an arm outside its limits, no first answer of the policy, nothing fresh.
        """
        self._end = False
        self.steps = 0
        worker = self._worker = PolicyWorker(self._act, self._size, self.clock, self._worker)
        try:
            self._prepare(worker)
            now = self.clock.now()
            episode = _Episode(max_steps, now, now, now, now)
            self.watchdog.start(now)
            while not episode.cause:
                self._period(episode, worker)
            self._come_to_rest(episode)
            self._finish_step()
            self.tell("on_period", self.clock.now(), self.watchdog.state, None)
            return Result(
                self.watchdog.state, self.watchdog.reasons, episode.cause, self.steps, dict(episode.verdicts),
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
        """Everything fresh, the policy warm, filter and path at the arm's joints."""
        config, watch = self.config, lambda: self._watch(worker)
        self._code, self._policy_error = OK, ""
        self.sensors.forget()
        self.sensors.wait_ready(watch, config.ready_s, "loop")
        worker.submit(self.clock.now(), self.sensors.observe(config.image_size))
        answer = worker.take(config.warm_up_s)
        if answer is None or answer.error:
            why = answer.error if answer else f"no answer within {config.warm_up_s:g} s"
            raise EnvError(f"policy: {why}; nothing has moved")
        self.tell("on_begin")
        # again: what the first answer took from the computer may have made frames stale
        self.stream.start(self.sensors.wait_ready(watch, config.ready_s, "loop").q)

    def _period(self, episode: _Episode, worker: PolicyWorker) -> None:
        """Wait for its begin, look, decide, send; or find the cause of the episode's end."""
        dt, clock = self.safety.dt, self.clock
        clock.sleep(episode.sent_last + dt - episode.work - clock.now())
        begin = clock.now()
        self.tell("on_beat")
        if self.stop_requested or self._end:
            episode.cause = "stopped" if self.stop_requested else "ended"
            return
        answer = worker.take()
        if answer is not None and answer.error:
            self._policy_error = answer.error
        state = self._watch(worker)
        now = clock.now()
        if now - episode.sent_last > STOOD_S:
            self.stream.stood()
        limit = self.watchdog.limits.hold_fault
        if self.steps < episode.max_steps and now - episode.acted > limit:
            # a policy that is always a little late: each answer comes in a HOLD of its own, and is void
            why = f": {UNSURE}" if self.watchdog.reasons == (UNSURE,) else ""
            self.watchdog.fault(now, f"no action for {limit:g} s{why}")
            state = self.watchdog.state
        safe = None if state == State.FAULT else self._decide(episode, now, state, answer, worker)
        if safe is None:
            episode.cause = "fault" if self.watchdog.state == State.FAULT else "steps"
            return
        episode.work += 0.1 * (clock.now() - begin - episode.work)
        clock.sleep(episode.sent_last + dt - clock.now())
        if self._stood_still(episode):
            episode.cause = "fault"
            return
        self._send(episode, safe)
        self.tell("on_period", now, state, safe)
        if safe.verdict == Verdict.STOP:
            self.watchdog.fault(now, f"safety stop: {safe.reasons[0]}")
            episode.cause = "fault"

    def _stood_still(self, episode: _Episode) -> bool:
        """Whether this process did not run for a while: then it must not move the arm. A fault."""
        now, limits = self.clock.now(), self.watchdog.limits
        gap, episode.alive = now - episode.alive, now
        assert self.sensors.state is not None
        still = gap > limits.gap or now - self.sensors.state.t_mono > limits.state_fault
        if still:
            self.watchdog.fault(now, f"the control loop stood still for {gap:.1f} s")
        return still

    def _decide(
        self, episode: _Episode, now: float, state: State, answer: Answer | None, worker: PolicyWorker
    ) -> Safe | None:
        """What to send in this period; None when the last step is done. Asks the policy when that is due."""
        if state == State.HOLD:
            unsure = self.watchdog.reasons == (UNSURE,)
            asks = unsure and now >= episode.next_tick and not worker.busy
            if asks:
                self._ask(now, worker)  # it goes on when the members agree about what they see then
                episode.next_tick = now + self.period
            elif not unsure:
                episode.next_tick = now
            if asks or not (unsure and episode.unsure):  # else the answer that ends the hold would be void
                episode.void_before = now
            episode.unsure = unsure
            return self.stream.hold(self.watchdog.reasons[0])
        episode.unsure = False
        measured = self.sensors.state
        assert measured is not None
        if answer is not None and answer.actions is not None and answer.t_observed >= episode.void_before:
            if self.config.check_chunks and (why := self.stream.refused(answer.actions, measured)):
                self.watchdog.fault(now, why)
                return None
            episode.latencies.append(answer.t_answered - answer.t_observed)
            self._finish_step()
            ages = self.sensors.ages(now)
            self.stream.take(now, answer.actions[0], measured, self._observed, answer.t_observed, ages)
            self.steps, episode.acted = self.steps + 1, now
        if now >= episode.next_tick and self.steps < episode.max_steps and not worker.busy:
            self._ask(now, worker)
            # two observations in a row would not show what the first action did
            on_time = now - episode.next_tick < self.period / 2
            episode.next_tick = (episode.next_tick if on_time else now) + self.period
        safe, arrived = self.stream.next(now, measured)
        return None if self.steps >= episode.max_steps and arrived else safe

    def _ask(self, now: float, worker: PolicyWorker) -> None:
        self._observed = self.sensors.observe(self.config.image_size)
        worker.submit(now, self._observed)

    def _send(self, episode: _Episode, safe: Safe) -> None:
        self._code, episode.sent_last = OK, self.clock.now()
        if self.config.live:
            done = self.driver.command(safe.q, safe.gripper)
            self._code, episode.sent_last = done.code, done.t_heard
        episode.sent.append(episode.sent_last)
        episode.verdicts[safe.verdict.name] += 1
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
        if self.stop_requested:  # also one that came in the last moment
            episode.cause = "stopped"
        if live and episode.cause == "stopped":
            self.driver.stop("operator")
        self.watchdog.pause(self.clock.now())

    def _brake(self, episode: _Episode) -> None:
        """Brake to rest along the way that the filter has checked."""
        while self.safety.dq_last.any() and self.watchdog.state != State.FAULT:
            self._send_at_end(episode, self.safety.hold("end of the episode"))

    def _release(self, episode: _Episode) -> None:
        """Move, filtered as ever, to where the arm stands if that is not where it was sent: it presses on something."""
        self.clock.sleep(SETTLE_S)
        try:
            state = self.driver.read()
        except EnvError:  # an arm that does not answer is found at the next start
            return
        begin = self.clock.now()
        arrived = bool(np.abs(state.q - self.safety.q_last).max() < PRESSES + self.driver.slack)
        self.stream.release(begin, state.q)
        while not (arrived or self.stop_requested or self.clock.now() - begin > RELEASE_S):
            with suppress(EnvError):  # the filter holds when the last state is old
                state = self.driver.read()
            safe, arrived = self.stream.next(self.clock.now(), state)
            self._send_at_end(episode, safe)
            if self.watchdog.state == State.FAULT:
                return
        self._brake(episode)

    def _send_at_end(self, episode: _Episode, safe: Safe) -> None:
        """Send once more after the episode's last; a gap, a code or a stop of the filter is a fault."""
        self.clock.sleep(episode.sent_last + self.safety.dt - self.clock.now())
        self.tell("on_beat")
        now, why = self.clock.now(), ""
        gap, episode.sent_last = now - episode.sent_last, now
        if gap > self.watchdog.limits.gap:  # this process did not run: it must not move the arm now
            why = f"the control loop stood still for {gap:.1f} s"
        elif self.config.live:
            done = self.driver.command(safe.q, None)
            episode.sent_last = done.t_heard
            why = f"command code {done.code}" if done.code != OK else ""
        if why or safe.verdict == Verdict.STOP:
            self.watchdog.fault(now, why or f"safety stop: {safe.reasons[0]}")
            self.driver.stop("; ".join(self.watchdog.reasons))

    def _finish_step(self) -> None:
        step = self.stream.finish()
        if step is not None:
            self.tell("on_step", step)

    def tell(self, event: str, *values: Any) -> None:
        """Call a method of every subscriber, in their order."""
        for subscriber in self.subscribers:
            getattr(subscriber, event)(*values)
