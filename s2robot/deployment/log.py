"""What is kept of a session's episodes on the arm: commands, records, and the dataset they are appended to."""

from pathlib import Path
from typing import Any

import numpy as np

from s2robot.common.files import write_json
from s2robot.deployment.trace import Trace
from s2robot.envs.real.arms.driver import ArmLimits
from s2robot.envs.real.control.loop import Result
from s2robot.envs.real.control.recorder import EpisodeRecorder, Sink
from s2robot.envs.real.control.safety import Safe
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.control.watchdog import State, Watchdog

CAUSES = ("steps", "ended", "stopped", "fault")  # how an episode ended; recorded as its place here


class SessionLog(Subscriber):
    """Hears of every episode and writes each one's commands to `out`/episodes.

    Attributes: `records` of the episodes so far; `steps` of the one under way.
    """

    def __init__(self, limits: ArmLimits, out: Path):
        self._limits, self._out = limits, out
        self._recorder: EpisodeRecorder | None = None
        self.records: list[dict[str, Any]] = []
        self.begin()

    def begin(self) -> None:
        """A new episode."""
        self._trace, self.steps = Trace(self._limits), 0
        self._decisions: list[float] = []  # s, when each action was taken up

    def record_to(self, sink: Sink) -> None:
        """Append every episode there, too."""
        self._recorder = EpisodeRecorder(sink)

    def on_period(self, now: float, state: State, safe: Safe | None) -> None:
        """See `Subscriber`."""
        self._trace.on_period(now, state, safe)

    def on_step(self, step: dict) -> None:
        """See `Subscriber`."""
        self.steps += 1
        self._decisions.append(float(step["time_action"]))
        if self._recorder is not None:
            self._recorder.on_step(step)

    def note(
        self,
        i: int,
        seed: int,
        success: bool,
        cause: str,
        fault: str,
        result: Result | None,
        watchdog: Watchdog,
    ) -> dict[str, Any]:
        """An episode is over: its record, once all of it is on disk."""
        if self._recorder is not None:
            self._recorder.finish(success=success, seed=seed, cause=CAUSES.index(cause))
        self._trace.write(self._out / "episodes" / f"episode_{i:04d}", f"episode {i}, {cause}")
        found = self._trace.summary()
        record: dict[str, Any] = {
            "episode": i, "seed": seed, "success": success, "cause": cause, "fault": fault, "steps": self.steps,
            "verdicts": found["verdicts"], "reasons": found["reasons"],
            "changes": [[s.value, list(why)] for _, s, why in watchdog.history],
        }  # fmt: skip
        watchdog.history.clear()
        if result is not None:
            periods = np.abs(result.periods - 1 / self._limits.rate_hz)
            record["period_deviation_ms"] = percentiles(periods)
            record["latency_ms"] = percentiles(result.latencies)
            record["periods_s"] = result.periods.round(5).tolist()
            record["decision_periods_s"] = np.diff(self._decisions).round(5).tolist()
            record["latencies_s"] = result.latencies.round(5).tolist()
        self.records.append(record)
        return record

    def write(self, **values: Any) -> None:
        """`summary.json`, with these values and all records."""
        write_json(self._out / "summary.json", {**values, "records": self.records})


def percentiles(seconds: np.ndarray) -> dict[str, float] | None:
    """p50, p99 and max in ms; None of nothing."""
    if not len(seconds):
        return None
    p50, p99, most = np.percentile(seconds * 1000, (50, 99, 100))
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(float(most), 2)}
