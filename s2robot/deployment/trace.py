"""What was sent to the arm, or would have been: kept every period, written as JSON and drawn afterwards.

trace = Trace(limits)
loop = ControlLoop(..., subscriber=trace)
trace.write(run / "dry_run")                # dry_run.json, dry_run.png
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from s2robot.common.files import write_json
from s2robot.envs.real.arms.driver import ArmLimits
from s2robot.envs.real.control.safety import Safe, Verdict
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.control.watchdog import State
from s2robot.reporting.style import BLUE, INK, ORANGE, PURPLE, VERMILLION, save_figure

_COLOURS = {Verdict.PASS: BLUE, Verdict.CLAMP: ORANGE, Verdict.HOLD: PURPLE, Verdict.STOP: VERMILLION}
_ROOM = 0.15  # rad, of a joint's range that is shown around its way


class Trace(Subscriber):
    """Every period's joints and verdict."""

    def __init__(self, limits: ArmLimits):
        self.limits = limits
        self._rows: list[tuple[float, State, Safe]] = []

    def on_period(self, now: float, state: State, safe: Safe | None) -> None:
        """See `Subscriber`."""
        if safe is not None:
            self._rows.append((now, state, safe))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def joints(self) -> np.ndarray:
        """Commanded joints, rad.  # (T, 7)"""
        return np.array([safe.q for _, _, safe in self._rows]).reshape(-1, 7)

    def summary(self) -> dict[str, Any]:
        """Counts and extremes, as JSON types: verdicts, reasons, fastest speed and shortest way to a limit."""
        limits, q = self.limits, self.joints
        low, high = np.array(limits.q_min) + limits.margin, np.array(limits.q_max) - limits.margin
        room = np.minimum(q - low, high - q)  # (T, 7)
        steps = (
            np.abs(np.diff(q, axis=0)) * limits.rate_hz
        )  # (T - 1, 7) rad/s; a dry run jumps back between actions
        resumed = steps.max(1, initial=0) > 1.01 * max(limits.dq_max)
        return {
            "periods": len(q),
            "seconds": self._rows[-1][0] - self._rows[0][0] if self._rows else 0.0,
            "verdicts": dict(Counter(safe.verdict.name for _, _, safe in self._rows)),
            "reasons": dict(Counter(reason for _, _, safe in self._rows for reason in safe.reasons)),
            "speed_max": float(steps[~resumed].max(initial=0.0)),
            "room_min": float(room.min()) if len(q) else None,
            "room_joint": int(room.min(0).argmin()) + 1 if len(q) else None,
        }

    def write(self, path: Path, title: str) -> None:
        """`path`.json and `path`.png; nothing if there were no periods."""
        if not self._rows:
            return
        begin = self._rows[0][0]
        value = {
            "title": title,
            **self.summary(),
            "rate_hz": self.limits.rate_hz,
            "q_min": list(self.limits.q_min),
            "q_max": list(self.limits.q_max),
            "margin": self.limits.margin,
            "dq_max": list(self.limits.dq_max),
            "time": [round(t - begin, 4) for t, _, _ in self._rows],
            "state": [state.value for _, state, _ in self._rows],
            "verdict": [safe.verdict.name for _, _, safe in self._rows],
            "joints": self.joints.round(5).tolist(),
            "gripper": [safe.gripper for _, _, safe in self._rows],
        }
        write_json(path.with_suffix(".json"), value)
        save_figure(self._draw(title), path.with_suffix(".png"))

    def _draw(self, title: str) -> Figure:
        figure = Figure(figsize=(10, 9), layout="constrained", dpi=80)
        figure.suptitle(title, fontsize=11)
        grid = figure.subplots(4, 2, sharex=True)
        time = np.array([t for t, _, _ in self._rows]) - self._rows[0][0]
        verdicts = [safe.verdict for _, _, safe in self._rows]
        for i, axes in enumerate(grid.ravel()[:7]):
            self._draw_joint(axes, i, time, verdicts)
        self._draw_gripper(grid.ravel()[7], time, verdicts)
        for axes in grid[-1]:
            axes.set_xlabel("s")
        return figure

    def _draw_joint(self, axes: Axes, i: int, time: np.ndarray, verdicts: list[Verdict]) -> None:
        q = self.joints[:, i]
        low, high = self.limits.q_min[i], self.limits.q_max[i]
        bottom, top = q.min() - _ROOM, q.max() + _ROOM
        axes.plot(time, q, color=INK, lw=1)
        for verdict in (Verdict.CLAMP, Verdict.HOLD, Verdict.STOP):
            at = np.array([v == verdict for v in verdicts])
            if at.any():
                axes.plot(time[at], q[at], ".", ms=4, color=_COLOURS[verdict])
        for limit, inner in ((low, low + self.limits.margin), (high, high - self.limits.margin)):
            if bottom <= inner <= top or bottom <= limit <= top:
                axes.axhspan(*sorted((limit, inner)), color=VERMILLION, alpha=0.25, lw=0)
                axes.axhline(limit, color=VERMILLION, lw=1.5)
        axes.set_ylim(bottom, top)
        room = min(q.min() - low, high - q.max())
        axes.set_title(
            f"joint {i + 1} (rad): limits {low:.2f} to {high:.2f}, nearest {room:.2f} away",
            fontsize=9,
            loc="left",
        )

    def _draw_gripper(self, axes: Axes, time: np.ndarray, verdicts: list[Verdict]) -> None:
        opening = [np.nan if safe.gripper is None else safe.gripper for _, _, safe in self._rows]
        axes.plot(time, opening, color=INK, lw=1, label="gripper, 1 = open")
        counts = Counter(verdicts)
        for row, verdict in enumerate(Verdict):
            at = np.array([v == verdict for v in verdicts])
            label = f"{verdict.name} {counts[verdict]}"
            axes.plot(
                time[at], np.full(at.sum(), -0.3 - 0.2 * row), "|", ms=7, color=_COLOURS[verdict], label=label
            )
        axes.set_ylim(-1.05, 1.1)
        axes.set_yticks([0, 1])
        axes.legend(fontsize=7, ncols=2, loc="center right")
        axes.set_title("gripper and verdicts of the safety filter", fontsize=9, loc="left")
