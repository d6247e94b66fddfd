"""When an expert has to take over from a policy, told from what the world shows after each of its steps.

watch = Watch(TakeoverSettings(patience=10))
watch.reason(Seen(left=0.2, missed=False))     # "": go on
"""

import math
from dataclasses import dataclass

from s2robot.common.errors import UserError

REASONS = ("missed", "stalled", "late", "unsure")  # the last two are told by whoever lets the policy act


@dataclass(frozen=True)
class TakeoverSettings:
    """configs/recording/dagger.yaml says what each is."""

    patience: int = 10
    progress: float = 0.005
    disagreement: float | None = None

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise UserError(f"recording.takeover.patience: found {self.patience}, expected 1 or more")
        if not 0 <= self.progress < math.inf:
            raise UserError(f"recording.takeover.progress: found {self.progress}, expected 0 or more")
        if self.disagreement is not None and not self.disagreement > 0:
            raise UserError(
                f"recording.takeover.disagreement: found {self.disagreement}, expected more than 0, or null"
            )


@dataclass(frozen=True)
class Seen:
    """The world after a step, as `Task.remaining` and `Task.grasp_missed` measure."""

    left: float
    missed: bool


class Watch:
    """Over one episode."""

    def __init__(self, settings: TakeoverSettings):
        self.settings = settings
        self._best, self._waited = float("inf"), 0

    def unsure(self, disagreement: float) -> bool:
        """Whether the members' new plans (rad apart) are too far from each other to be followed."""
        limit = self.settings.disagreement
        return limit is not None and disagreement > limit

    def reason(self, seen: Seen) -> str:
        """Why the expert takes over: `missed`, `stalled`, or none."""
        if seen.missed:
            return "missed"
        if seen.left < self._best - self.settings.progress:
            self._best, self._waited = seen.left, 0
            return ""
        self._waited += 1
        return "stalled" if self._waited >= self.settings.patience else ""
