"""Questions to a person at a terminal."""

import numpy as np

from s2robot.envs.real.operator.prompts import Placing, TerminalOperator
from tests.envs.real.home import HOME


def test_the_terminal_asks_and_takes_only_yes():
    said, answers = [], []
    operator = TerminalOperator(lambda question: (said.append(question), answers.pop(0))[1])
    answers[:] = ["y"]
    assert operator.place(Placing(3, (0.051, -0.032), np.pi / 2 + 0.5, HOME))
    assert all(words in said[-1] for words in ("x +5.1 cm", "y -3.2 cm", "29 deg"))
    answers[:] = ["n"]
    assert not operator.free(("arm error 31",)) and "arm error 31" in said[-1]
    answers[:] = ["y", ""]
    assert not operator.free(("arm error 31",))
    answers[:] = ["Yes"]
    assert operator.success() and not operator.ended()
    answers[:] = ["", "maybe", "y", "", "n"]  # asked until it is answered: a no throws the demonstration away
    assert operator.keep() and not operator.keep() and not answers
