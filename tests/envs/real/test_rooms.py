"""The bridge's own description is true."""

import inspect
import re
from pathlib import Path

import pytest

from s2robot.envs import real
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import ArmDriver
from s2robot.envs.real.arms.franka import FrankaDriver
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.arms.xarm import XArmDriver


def test_it_names_every_room():
    here = Path(real.__file__).parent
    rooms = {f"{p.parent.name}/" for p in here.glob("*/__init__.py")}
    rooms |= {p.stem for p in here.glob("*.py") if p.stem != "__init__"}
    assert set(re.findall(r"^(\w+/?)  ", real.__doc__, re.M)) == rooms


@pytest.mark.parametrize("driver", [XArmDriver, FrankaDriver])
def test_the_drivers_that_it_names_do_all_that_is_asked_of_one(driver):
    assert driver.__name__ in real.__doc__
    wanted = [name for name, _ in inspect.getmembers(ArmDriver, inspect.isfunction) if name[0] != "_"]
    assert len(wanted) == 7 and all(callable(getattr(driver, name)) for name in wanted)


def test_the_filter_knows_the_arms_that_it_says():
    assert "the safety filter knows the xArm7 alone" in real.__doc__
    ArmPoints("xarm7")
    with pytest.raises(EnvError):
        ArmPoints("panda")
