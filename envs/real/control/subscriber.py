"""Events of a control loop, who receives them, and the recorder of an episode in the demos' format.

Beyond the demos' own keys (`action`, `proprio`, `images_<camera>`) a recorded step has `action_raw` (the policy's),
`action_sent` (how far the stream went in that step, and the gripper), `time` and `time_action` (s, monotonic: of the
observation, and when its action was taken up), `verdict` (the worst of `safety.Verdict`), `code` (the arm's last that
was not 0) and `camera_age` (s, in the cameras' order).
"""

from typing import Any

import numpy as np

from s2robot.envs.real.control.safety import Safe
from s2robot.envs.real.control.watchdog import State


class Subscriber:
    """Receives the events of a loop's episodes, in the loop's thread; does nothing by default.

    A method must not wait. An exception that it raises stops the arm.
    """

    def on_begin(self) -> None:
        """The policy is warm and everything is fresh; motion begins next."""

    def on_beat(self) -> None:
        """A period of the stream begins."""

    def on_period(self, now: float, state: State, safe: Safe | None) -> None:
        """A period is over (s, monotonic): the watchdog's state and the filter's answer. None: the last one."""

    def on_step(self, step: dict) -> None:
        """An action has been executed: arrays by name, see the module."""


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
        """Append the episode with values such as `success` and `seed`; how many steps it has (0: not written)."""
        if not (count := len(self)):
            return 0
        episode = {key: np.stack([np.asarray(step[key]) for step in self._steps]) for key in self._steps[0]}
        for key in ("time", "time_action", "camera_age"):  # a store takes finite numbers only
            if key in episode:
                episode[key] = np.nan_to_num(episode[key], posinf=1e6)
        self._sink.append(episode, meta)
        self.discard()
        return count

    def discard(self) -> None:
        self._steps = []
