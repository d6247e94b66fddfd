"""An arm and cameras in virtual time: seconds of motion take milliseconds and repeat exactly."""

import threading
from types import SimpleNamespace

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import OK, REFUSED, XARM7_LIMITS, ArmState, CommandResult, DriverStatus
from s2robot.envs.real.arms.geometry import XArm7Points
from s2robot.envs.real.cameras.camera import Frame
from s2robot.envs.real.control.loop import STOOD_S, LoopConfig
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.runtime import ArmRuntime
from tests.envs.real.home import HOME

NOISE = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)  # images
LIVE = LoopConfig(live=True, image_size=16)
SLOWLY = np.append(np.full(7, 0.01), 1.0)  # an action


class VirtualClock:
    """A `Clock` whose time advances only while all threads wait; it is also its own `Condition`.

    One thread runs at a time: the creator of the clock, or one started by `spawn`. When it waits, the first other
    thread that is ready runs; if none is, time jumps to the next deadline. Threads that wait by other means must not
    take part.
    """

    def __init__(self, start: float = 1000.0):
        self._time, self._waits = start, []

    def now(self):
        return self._time

    def sleep(self, seconds):
        if seconds > 0:
            self.wait_for(lambda: False, seconds)

    def spawn(self, target, name):
        begin, done = _Wait(lambda: True, np.inf), []

        def run():
            begin.turn()
            try:
                target()
            finally:
                done.append(True)
                self._next()

        self._waits.append(begin)
        threading.Thread(target=run, daemon=True, name=name).start()
        return SimpleNamespace(join=lambda timeout=None: self.wait_for(lambda: done, timeout))

    def at(self, delay, function):
        """Call the function after a delay, s."""
        return self.spawn(lambda: (self.sleep(delay), function()), "timer")

    def wait_for(self, predicate, timeout=None):
        wait = _Wait(predicate, np.inf if timeout is None else self._time + timeout)
        self._waits.append(wait)
        self._next()
        wait.turn()
        return predicate()

    def condition(self):
        return self

    def __enter__(self):  # needs no lock: no other thread runs meanwhile
        return self

    def __exit__(self, *_): ...
    def notify_all(self): ...

    def _next(self):
        """Let the next ready thread run."""
        while True:
            for wait in self._waits:
                if wait.predicate() or wait.deadline <= self._time:
                    self._waits.remove(wait)
                    wait.ready.set()
                    return
            deadline = min((w.deadline for w in self._waits), default=np.inf)
            if deadline == np.inf:
                for wait in self._waits:
                    wait.stuck = True
                    wait.ready.set()
                return
            self._time = deadline


class _Wait:
    def __init__(self, predicate, deadline):
        self.predicate, self.deadline, self.ready, self.stuck = predicate, deadline, threading.Event(), False

    def turn(self):
        # a thread that outlives its test waits for ever
        limit = 300 if threading.current_thread() is threading.main_thread() else None
        assert self.ready.wait(limit), "a thread does not wait through the clock"
        assert not self.stuck, "deadlock: every thread waits for another"


class FakeArm:
    """An arm that stays at its last target and stores all targets. A call takes 0.4 ms, as on loopback."""

    def __init__(self, clock, q=HOME, limits=XARM7_LIMITS):
        self.clock, self.limits, self.start = clock, limits, np.array(q)
        self.q, self.sent, self.times, self.stops = self.start.copy(), [], [], []
        self.error, self.mode, self.code, self.gripper = 0, 1, OK, 1.0
        self.armed_mode, self.slack = 1, 0.0
        self.silent, self.stuck, self.reads = lambda arm: False, False, 0
        self.stopped, self.acknowledges = False, True

    def connect(self, timeout_s): ...
    def close(self): ...

    def arm(self):
        if self.error:
            raise EnvError(f"found error {self.error} pending, expected none")
        self.clock.sleep(0.02)  # a handful of calls
        self.stopped = False

    def read(self):
        self.reads += 1
        requested = self.clock.now()
        self.clock.sleep(0.0004)
        if self.silent(self):
            raise EnvError("no answer")
        return ArmState(self.q.copy(), self.gripper, requested, self.mode, self.error)

    def command(self, q, gripper):
        now = self.clock.now()
        if self.stopped:
            return CommandResult(REFUSED, now, now)
        self.clock.sleep(0.0004)
        self.sent.append(q.copy())
        self.times.append(now)
        self.q = self.q if self.stuck else q.copy()
        self.gripper = self.gripper if gripper is None else gripper
        return CommandResult(self.code, now, self.clock.now())

    def stop(self, reason):
        self.stopped = True
        self.stops.append(reason)
        return self.acknowledges

    def status(self):
        return DriverStatus(True, self.error, self.mode, 0.0)

    def lawful(self):
        """Assert that no command exceeded the speed or acceleration limit of a joint."""
        q, rate = np.array([self.start, *self.sent]), self.limits.rate_hz
        dq = np.diff(q, axis=0) * rate
        ddq = np.abs(np.diff(dq, axis=0, prepend=0 * dq[:1])) * rate
        gap = np.diff(self.times, prepend=-np.inf)[:, None] > max(STOOD_S, 2 / rate)
        # the motion continues, or starts from rest
        ddq = np.where(gap, np.minimum(ddq, np.abs(dq) * rate), ddq)
        assert (np.abs(dq) <= np.array(self.limits.dq_max)).all()
        assert (ddq <= np.array(self.limits.ddq_max) + 1e-6).all()
        assert (np.diff(self.times) >= 1 / rate - 1e-4).all()


class Film:
    """A camera that cycles through images (T, H, W, 3), each 20 ms old on arrival."""

    def __init__(self, clock, images, fps=50, late_s=0.02):
        self._clock, self._images, self._fps, self._late = clock, images, fps, late_s
        self._begin, self._ended, self.error = clock.now(), np.inf, ""

    def end(self):
        """Deliver no further images."""
        self._ended, self.error = min(self._ended, self._clock.now()), "unplugged"

    def latest(self):
        now = min(self._clock.now(), self._ended)
        seq = 1 + max(0, int((now - self._begin - self._late) * self._fps))
        captured = self._begin + (seq - 1) / self._fps
        changed = captured if len(self._images) > 1 else self._begin
        return Frame(seq, captured, self._images[seq % len(self._images)], changed)

    def age(self, now):
        return now - self.latest().t_capture


class Watch:
    """A supervisor that only records calls."""

    def __init__(self):
        self.heard, self.gone = [], False

    def beat(self):
        if self.gone:
            raise EnvError("supervisor: connection closed")
        self.heard.append("beat")

    def rest(self):
        self.heard.append("rest")

    def stop(self):
        self.heard.append("stop")
        return not self.gone


class Calls(Subscriber):
    """A subscriber made of functions: `begin`, `beat`, `period`, `step`."""

    def __init__(self, **functions):
        vars(self).update({f"on_{name}": function for name, function in functions.items()})


def driven(arm, act, loop=LIVE, camera=None, **settings):
    """Return an `ArmRuntime` of an arm in virtual time, with one camera and a supervisor that only records calls."""
    cameras = {"hand": camera or Film(arm.clock, NOISE, 30)}
    settings = {"supervisor": Watch(), "clock": arm.clock} | settings
    return ArmRuntime(arm, cameras, act, XArm7Points(), loop, **settings)


def episode(runtime, steps):
    """Run an episode and stop the arm."""
    runtime.arm()
    try:
        return runtime.run(steps)
    finally:
        runtime.driver.stop("end of the episode")
