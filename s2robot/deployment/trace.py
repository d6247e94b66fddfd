"""The log of an episode: its commands, actions and frames, written as JSON and plotted afterwards."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from s2robot.core.files import write_json
from s2robot.envs.real.arms.driver import ArmLimits
from s2robot.envs.real.control.loop import Result
from s2robot.envs.real.control.safety import Safe, Verdict
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.control.watchdog import State
from s2robot.reporting.plots import Line, Panel, curves
from s2robot.reporting.style import INK, ORANGE, PURPLE, VERMILLION, save_figure

_COLOURS = {Verdict.CLAMP: ORANGE, Verdict.HOLD: PURPLE, Verdict.STOP: VERMILLION}
_ROOM = 0.15  # rad, margin of the plots around a joint's path


class EpisodeLog(Subscriber):
    """Every period's joints and verdict, and every step's action; with `frames`, also the cameras' frames.

    Attributes: `actions` (A,) as returned by the policy; `frames`, by camera; `verdicts`, number of steps with each;
    `holds`, number of steps before which the arm had to wait.
    """

    def __init__(self, limits: ArmLimits, frames: bool = False):
        self.limits, self._keeps_frames = limits, frames
        self._low, self._high = np.array(limits.q_min) + limits.margin, np.array(limits.q_max) - limits.margin
        self.begin()

    def begin(self) -> None:
        self._rows: list[tuple[float, State, Safe]] = []
        self._times: list[float] = []  # s, when each action was accepted
        self.actions: list[np.ndarray] = []
        self.frames: list[dict] = []
        self.verdicts: Counter[str] = Counter()
        self.holds, self._held = 0, False

    def on_period(self, now: float, state: State, safe: Safe | None) -> None:
        self._held |= state == State.HOLD
        if safe is not None:
            self._rows.append((now, state, safe))

    def on_step(self, step: dict) -> None:
        self.actions.append(step["action_raw"])
        self._times.append(float(step["time_action"]))
        self.verdicts[Verdict(step["verdict"]).name] += 1
        self.holds, self._held = self.holds + self._held, False
        if self._keeps_frames:
            images = {k.removeprefix("images_"): v for k, v in step.items() if k.startswith("images_")}
            self.frames.append(images)

    @property
    def joints(self) -> np.ndarray:
        """Commanded joints, rad.  # (T, N)"""
        return np.array([safe.q for _, _, safe in self._rows]).reshape(-1, self.limits.joints)

    def summary(self) -> dict[str, Any]:
        """Return counts and extremes: verdicts, reasons, highest speed and smallest distance to a limit."""
        q = self.joints
        room = np.minimum(q - self._low, self._high - q)  # (T, N)
        # (T - 1, N) rad/s; a dry run jumps back between actions
        steps = np.abs(np.diff(q, axis=0)) * self.limits.rate_hz
        resumed = steps.max(1, initial=0) > 1.01 * max(self.limits.dq_max)
        return {
            "periods": len(q),
            "seconds": self._rows[-1][0] - self._rows[0][0] if self._rows else 0.0,
            "verdicts": dict(Counter(safe.verdict.name for _, _, safe in self._rows)),
            "reasons": dict(Counter(reason for _, _, safe in self._rows for reason in safe.reasons)),
            "speed_max": float(steps[~resumed].max(initial=0.0)),
            "room_min": float(room.min()) if len(q) else None,
            "room_joint": int(room.min(0).argmin()) + 1 if len(q) else None,
        }

    def timing(self, result: Result) -> dict[str, Any]:
        """Return the periods and latencies of an episode's control loop, s, and percentiles of their deviations, ms."""
        return {
            "period_deviation_ms": percentiles(np.abs(result.periods - 1 / self.limits.rate_hz)),
            "latency_ms": percentiles(result.latencies),
            "periods_s": result.periods.round(5).tolist(),
            "decision_periods_s": np.diff(self._times).round(5).tolist(),
            "latencies_s": result.latencies.round(5).tolist(),
        }

    def write(self, path: Path, title: str) -> None:
        """Write `path`.json and `path`.png, unless there were no periods."""
        if not self._rows:
            return
        times, states, safes = zip(*self._rows, strict=True)
        time = np.array(times) - times[0]
        names = "rate_hz", "q_min", "q_max", "margin", "dq_max"
        write_json(path.with_suffix(".json"), {
            "title": title, **self.summary(), **{name: getattr(self.limits, name) for name in names},
            "time": time.round(4).tolist(), "state": [state.value for state in states],
            "verdict": [safe.verdict.name for safe in safes], "joints": self.joints.round(5).tolist(),
            "gripper": [safe.gripper for safe in safes],
        })  # fmt: skip
        save_figure(self._draw(title, time), path.with_suffix(".png"))

    def _draw(self, title: str, time: np.ndarray) -> Figure:
        """Plot each joint between its limits, and the gripper; dots mark commands that the filter changed."""
        verdicts = np.array([safe.verdict for _, _, safe in self._rows])
        opening = [np.nan if safe.gripper is None else safe.gripper for _, _, safe in self._rows]
        panels, dots = [], {"ls": "none", "marker": ".", "ms": 4}
        for i, path in enumerate([*self.joints.T, np.array(opening)]):  # (T,) each
            lines, name, ylim = [Line(time, path, "", INK, style={"lw": 1})], "gripper, 1 = open", None
            for verdict, colour in _COLOURS.items():
                at, label = verdicts == verdict, f"{verdict.name} {np.sum(verdicts == verdict)}"
                lines.append(Line(time[at], path[at], label, colour, style=dots))
            if i < self.limits.joints:
                ends = self._low[i], self._high[i]
                lines += [Line(time[[0, -1]], [y, y], "", VERMILLION, style={"marker": ""}) for y in ends]
                name = f"joint {i + 1} (rad): limits {ends[0]:.2f} to {ends[1]:.2f}"
                ylim = path.min() - _ROOM, path.max() + _ROOM
            panels.append(Panel(name, lines, "s", ylim=ylim))
        figure = curves(panels, 2, (5, 2.25))
        figure.suptitle(title, fontsize=11)
        return figure


def sampled(actor: Any) -> dict[str, Any]:
    """Return an actor's values for an episode's record: its seed, and its members' mean disagreement, if any."""
    mean = actor.mean_disagreement
    return {"policy_seed": actor.seed} | ({} if mean is None else {"disagreement": round(mean, 6)})


def percentiles(seconds: np.ndarray) -> dict[str, float] | None:
    """Return p50, p99 and max in ms; None for an empty array."""
    if not len(seconds):
        return None
    values = np.percentile(seconds * 1000, (50, 99, 100))
    return {name: round(float(ms), 2) for name, ms in zip(("p50", "p99", "max"), values, strict=True)}
