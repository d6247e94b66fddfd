"""The tasks by name: their settings, and their worlds.

make(settings_class("robosuite")(env="Stack")).reset(seed=0)
settings_of(store.attrs["env_config"])       # the world of a dataset or a checkpoint
"""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from s2robot.core.errors import one_of
from s2robot.core.settings import read
from s2robot.envs.errors import EnvError, expect
from s2robot.envs.gl import check_gl
from s2robot.envs.task_settings import TaskSettings

if TYPE_CHECKING:
    from s2robot.envs.task import Task

_CACHED = 3  # worlds of 60 MB; a worker needs one for each kind of demos
_worlds: dict[tuple[str, bool], "Task"] = {}  # least recently used first
DEFAULT = "cube_pick"  # the task of a dataset, a checkpoint or a summary that names none
# name -> its settings; their `target` is the class of the world
SETTINGS = {
    "cube_pick": "s2robot.envs.cube_config:CubePickConfig",
    "robosuite": "s2robot.envs.robosuite_config:RobosuiteSettings",
    "lift": "s2robot.envs.robosuite_config:LiftSettings",
    "stack": "s2robot.envs.robosuite_config:StackSettings",
    "can": "s2robot.envs.robosuite_config:CanSettings",
    "square": "s2robot.envs.robosuite_config:SquareSettings",
    "gym": "s2robot.envs.gym_task:GymSettings",
}
OTHERS = SETTINGS.keys() - {DEFAULT}  # that a dataset or a checkpoint can name: a user's task needs its class
_USER_TASKS: dict[str, type[TaskSettings]] = {}  # registered by :func:`register_user_task`


def settings_class(name: str) -> type[TaskSettings]:
    """Return the class of the settings of the task ``name``; UserError for an unknown one."""
    if name in _USER_TASKS:
        return _USER_TASKS[name]
    one_of("task", name, SETTINGS, "; your own task needs task.class=module:Class")
    return import_class(SETTINGS[name])


def register_user_task(name: str, target: str) -> type[TaskSettings]:
    """Make a user's task known by the "module:Class" of its world, and return the class of its settings.

    EnvError if there is no such module (the current folder is searched too) or class, or it is no task.
    """
    from s2robot.envs.task import Task

    check_gl()
    world = import_class(target, "task.class")
    lacking = [n for n in dir(world) if getattr(getattr(world, n), "__isabstractmethod__", False)]
    fits = isinstance(world, type) and issubclass(world, Task)
    expect(name not in SETTINGS, "task.name", "a name that no task of this package has", f"'{name}'")
    expect(fits, "task.class", "a subclass of s2robot.envs.task.Task", target)
    expect(not lacking, "task.class", f"{', '.join(lacking)}, as every task has", f"{target} without")
    _USER_TASKS[name] = world.Settings
    return world.Settings


def settings_class_or_base(name: str | None) -> type[TaskSettings]:
    """Return the settings class of the task that a summary names, or :class:`TaskSettings` if it is unknown here."""
    name = name or DEFAULT
    return settings_class(name) if name in SETTINGS or name in _USER_TASKS else TaskSettings


def settings_of(stored: Mapping[str, Any], where: str = "env_config", **changes: Any) -> TaskSettings:
    """Return the settings that a dataset or a checkpoint stores of its world; ``changes`` win.

    UserError for an unknown task or key, or a wrong value. A user's task is known once its class was named (``task.class``): a
    dataset cannot name code to run.
    """
    values = {**stored, **changes}
    return read(settings_class(values.get("task", DEFAULT)), values, where)


def make(settings: TaskSettings, draw: bool = True) -> "Task":
    """Return the world of these settings (EnvError if it cannot be made); without ``draw`` it observes no frames."""
    check_gl()
    return import_class(settings.target)(settings, draw=draw)


def make_cached(settings: TaskSettings, draw: bool = True) -> "Task":
    """As :func:`make`, but reuse one of the last few worlds of this process."""
    key = repr(settings), draw  # a dict of cameras cannot be hashed
    world = _worlds.pop(key, None) or make(settings, draw)
    if len(_worlds) >= _CACHED:
        del _worlds[next(iter(_worlds))]
    _worlds[key] = world
    return world


def import_class(target: str, where: str = "task") -> Any:
    """Return what "module:Class" names; the current folder is searched too. EnvError, from `where`: there is none."""
    module, _, name = str(target).partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script leaves it out
    try:
        # ".pusher" would be relative to a package, and there is none
        return getattr(importlib.import_module(module if name and module[:1] != "." else ""), name)
    except (ImportError, ValueError, AttributeError) as error:
        text = f"{where}: expected module:Class, got '{target}', which cannot be imported: {error}"
        raise EnvError(text) from None
