"""Events of a control loop, their subscribers, and the recorder of an episode in the demos' format.

In addition to the demos' keys (`action`, `proprio`, `images_<camera>`), a recorded step has `action_raw` (the policy's),
`action_sent` (the stream's motion in that step, and the gripper), `time` and `time_action` (s, monotonic: of the
observation, and of accepting its action), `verdict` (the worst `safety.Verdict`), `code` (the arm's last nonzero code)
and `camera_age` (s, in the cameras' order).
"""

from typing import Any

import numpy as np

from s2robot.envs.real.control.safety import Safe
from s2robot.envs.real.control.watchdog import State


class Subscriber:
    """Receives the events of a loop's episodes, in the loop's thread; does nothing by default.

    A method must not block. An exception raised by a method stops the arm.
    """

    def on_begin(self) -> None:
        """Called when the policy is warm and all readings are fresh, before motion begins."""

    def on_drop(self) -> None:
        """Called when the policy's answer is dropped, because the arm was held after its observation."""

    def on_beat(self) -> None:
        """Called when a period of the stream begins."""

    def on_period(self, now: float, state: State, safe: Safe | None) -> None:
        """Called after each period (s, monotonic) with the watchdog's state and the filter's answer; None in the last call."""

    def on_step(self, step: dict) -> None:
        """Called after each executed action with arrays by name; see the module's docstring."""


class EpisodeRecorder(Subscriber):
    """Collects the steps of one episode in memory; `finish` appends them to an `EpisodeStore`, `discard` drops them."""

    def __init__(self, sink: Any):
        self._sink = sink
        self._steps: list[dict] = []

    def __len__(self) -> int:
        return len(self._steps)

    def on_step(self, step: dict) -> None:
        self._steps.append(step)

    def finish(self, **meta: Any) -> int:
        """Append the episode with values such as `success` and `seed`; return its number of steps (0: nothing written)."""
        if not (count := len(self)):
            return 0
        episode = {key: np.stack([np.asarray(step[key]) for step in self._steps]) for key in self._steps[0]}
        for key in ("time", "time_action", "camera_age"):  # a store accepts finite numbers only
            if key in episode:
                episode[key] = np.nan_to_num(episode[key], posinf=1e6)
        self._sink.append(episode, meta)
        self.discard()
        return count

    def discard(self) -> None:
        self._steps = []
