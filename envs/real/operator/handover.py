"""A policy acts, and a person takes over and gives back in the middle of an episode.

    handover = Handover()                            # space: who acts; g: the gripper; Enter, x: as in `Controls`
    shared = SharedControl(policy.act, policy.reset, handover, teleoperator, lambda: loop.commanded)
    loop = ControlLoop(driver, cameras, shared.act, ..., subscriber=Subscribers(recorder, shared))
    shared.persons                                   # who acted in each executed step

Nothing jumps at a handover: the person's motion starts at the commanded joints, the gripper keeps its last command,
and both act through the same loop, filter and watchdog.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from s2robot.envs.real.arms.driver import Array
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.operator.teleop import Controls, Teleoperator

HANDOVER_HELP = "space: take over, give back   g: gripper   Enter: end   x: end and discard"


class Handover(Controls):
    """Controls of a person beside a policy: `person` says whether the person acts."""

    def reset(self) -> None:
        """Prepare the next episode: the policy acts."""
        super().reset()
        self.person = False

    def on_key(self, key: str) -> None:
        """Space: who acts. g: the gripper, while the person acts. The rest as in `Controls`."""
        if key == " ":
            self.person = not self.person
        elif key != "g":
            super().on_key(key)
        elif self.person:
            super().on_key(" ")


class SpaceMouseControls(Controls):
    """A SpaceMouse's buttons for a `Handover`: the first one is the gripper, not who acts."""

    def __init__(self, handover: Handover):
        super().__init__()
        self._handover = handover

    def on_key(self, key: str) -> None:
        self._handover.on_key("g" if key == " " else key)


class LedControls(Controls):
    """The controls of `teach` while a person leads the arm by hand: giving back ends that part, too."""

    def __init__(self, handover: Handover):  # the handover stores the values
        self._handover = handover

    @property
    def closed(self) -> bool:  # type: ignore[override]
        return self._handover.closed

    @property
    def ended(self) -> bool:  # type: ignore[override]
        return self._handover.ended or not self._handover.person


class SharedControl(Subscriber):
    """The policy of a loop in which a person may take over.

    Args:
        policy: observation -> action (8,).
        forget: makes the policy start anew; called before it acts again, since it planned from another state.
        teleoperator: the person's actions; None where the person leads the arm by hand, outside the loop.
        commanded: the joints (7,) rad that the next action is added to.
    """

    def __init__(
        self,
        policy: Callable[[Mapping[str, Any]], Array],
        forget: Callable[[], None],
        handover: Handover,
        teleoperator: Teleoperator | None,
        commanded: Callable[[], Array],
    ):
        self._policy, self._forget, self._handover = policy, forget, handover
        self._teleoperator, self._commanded = teleoperator, commanded
        self.begin()

    def begin(self) -> None:
        """Start an episode, with the policy."""
        self._person = self._closed = False
        self.persons: list[bool] = []  # of each executed step
        self._acts: deque[tuple[Any, bool]] = deque(maxlen=8)  # proprio of an observation, who acted upon it

    @property
    def leads(self) -> bool:
        """Whether the person has taken the arm in hand, outside the loop."""
        return self._teleoperator is None and self._handover.person

    def act(self, observation: Mapping[str, Any]) -> Array:
        """Return the next action (8,) of whoever acts; the other one's part ends here."""
        person = self._handover.person and self._teleoperator is not None
        if person != self._person:
            self._person = person
            if person:
                self.take()
            else:
                self._forget()
        if person:
            assert self._teleoperator is not None
            action = self._teleoperator.act(self._commanded())
        else:
            action = np.asarray(self._policy(observation), np.float32)
        self._closed = action.shape == (8,) and bool(action[7] >= 0.5)
        self._acts.append((observation["proprio"], person))
        return action

    def on_begin(self) -> None:
        """Start anew after the warm-up."""
        self._forget()
        self._person = False

    def on_step(self, step: dict) -> None:
        """Note who acted: answers that came while the arm was held were not executed."""
        self.persons.append(next(person for seen, person in self._acts if seen is step["proprio"]))

    def take(self) -> None:
        """Begin the person's part where the policy's ended."""
        self._handover.closed = self._closed
        if self._teleoperator is not None:
            self._teleoperator.reset()

    def led(self, steps: int) -> None:
        """Note steps in which the person led the arm by hand; the policy acts next."""
        self.persons += [True] * steps
        self._closed = self._handover.closed
