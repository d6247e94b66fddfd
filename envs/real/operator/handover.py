"""A policy acts, and a person takes over and gives back in the middle of an episode.

    handover = Handover()                            # space: who acts; g: the gripper; Enter, x: as of `Controls`
    shared = SharedControl(policy.act, policy.reset, handover, teleoperator, lambda: env.loop.commanded)
    shared.begin()
    action = shared.act(observation)                 # of whoever acts now
    shared.acted(executed)                           # after the step: `persons` tells who acted in it

Nothing jumps at a hand-over: the person's first wish starts at the commanded joints, the gripper stays as it was told
last, and both act through the same loop, filter and watchdog.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from s2robot.envs.real.arms.driver import Array
from s2robot.envs.real.operator.teleop import Controls, Teleoperator

HANDOVER_HELP = "space: take over, give back   g: gripper   Enter: end   x: end and discard"


class Handover(Controls):
    """Controls of a person beside a policy: `person` says whether the person acts."""

    def __init__(self) -> None:
        super().__init__()
        self.person = False

    def reset(self) -> None:
        """For the next episode: the policy acts."""
        super().reset()
        self.person = False

    def on_key(self, key: str) -> None:
        """Space: who acts. g: the gripper, while the person acts. The rest as of `Controls`."""
        if key == " ":
            self.person = not self.person
        elif key != "g":
            super().on_key(key)
        elif self.person:
            super().on_key(" ")

    def button(self, key: str) -> None:
        """A key of a device whose first button is the gripper, which it calls space."""
        self.on_key("g" if key == " " else key)


class SpaceMouseControls(Controls):
    """The controls that a SpaceMouse gets: its buttons, to a `Handover`."""

    def __init__(self, handover: Handover):
        super().__init__()
        self._handover = handover

    def on_key(self, key: str) -> None:
        """See `Handover.button`."""
        self._handover.button(key)


class LedControls(Controls):
    """The controls of `Teaching` while a person leads the arm by hand: giving back ends that part, too."""

    def __init__(self, handover: Handover):  # what it would set is the hand-over's
        self._handover = handover

    @property
    def closed(self) -> bool:  # type: ignore[override]
        return self._handover.closed

    @property
    def ended(self) -> bool:  # type: ignore[override]
        return self._handover.ended or not self._handover.person


class SharedControl:
    """Who acts in an episode.

    Args:
        policy: observation -> action (8,).
        forget: makes the policy begin anew; called before it acts again, for what it planned is of another state.
        handover: what the person says.
        teleoperator: turns the person's wishes into actions; None where the person leads the arm by hand, which is
            no matter of actions.
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
        self._person = self._closed = False
        self.persons: list[bool] = []  # of each executed step

    def begin(self) -> None:
        """An episode begins, with the policy."""
        self._forget()
        self._person = self._closed = False
        self.persons = []

    @property
    def corrected(self) -> bool:
        """Whether the person has acted."""
        return any(self.persons)

    @property
    def leads(self) -> bool:
        """Whether the person has taken the arm in hand, which is no matter of actions."""
        return self._teleoperator is None and self._handover.person

    def act(self, observation: Mapping[str, Any]) -> Array:
        """The next action (8,) of whoever acts; the other one's part ends here."""
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
        self._closed = bool(action[7] >= 0.5)
        return action

    def take(self) -> None:
        """The person begins where the policy has left off."""
        self._handover.closed = self._closed
        if self._teleoperator is not None:
            self._teleoperator.reset(self._commanded())

    def acted(self, executed: bool) -> None:
        """The step with the last action is over; an action that came while the arm was held was not executed."""
        if executed:
            self.persons.append(self._person)

    def led(self, steps: int) -> None:
        """The person has led the arm for so many steps; the policy acts next, if anybody does."""
        self.persons += [True] * steps
        self._closed, self._person = self._handover.closed, False
        self._forget()
