"""The tasks by name, with their settings and worlds.

make(settings_class("robosuite")(env="Stack")).reset(seed=0)
settings_of(store.attrs["env_config"])       # the world of a dataset or a checkpoint
"""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from s2robot.core.errors import one_of, reported
from s2robot.core.settings import read
from s2robot.envs.errors import EnvError, expect
from s2robot.envs.gl import check_gl, require_simulator
from s2robot.envs.task_settings import TaskSettings

if TYPE_CHECKING:
    from s2robot.envs.task import Task

_CACHED = 3  # worlds of 60 MB; a worker needs one for each kind of demos
worlds: dict[tuple[str, bool], "Task"] = {}  # least recently used first
DEFAULT = "cube_pick"  # the task of a dataset, checkpoint or summary that names none
SETTINGS = {  # name -> its settings; their `target` is the class of the world
    "cube_pick": "s2robot.envs.cube_config:CubePickConfig",
    "robosuite": "s2robot.envs.robosuite_config:RobosuiteSettings",
    "lift": "s2robot.envs.robosuite_config:LiftSettings",
    "stack": "s2robot.envs.robosuite_config:StackSettings",
    "can": "s2robot.envs.robosuite_config:CanSettings",
    "square": "s2robot.envs.robosuite_config:SquareSettings",
    "gym": "s2robot.envs.gym_task:GymSettings",
}
OTHERS = SETTINGS.keys() - {DEFAULT}  # that a dataset or checkpoint can name: a user's task needs its class
_USER_TASKS: dict[str, type[TaskSettings]] = {}  # registered by :func:`register_user_task`


def settings_class(name: str) -> type[TaskSettings]:
    """Return the settings class of the task ``name``; UserError for an unknown one."""
    if name in _USER_TASKS:
        return _USER_TASKS[name]
    one_of("task", name, SETTINGS, "; your own task needs task.class=module:Class")
    return import_class(SETTINGS[name])


def register_user_task(name: str, target: str) -> type[TaskSettings]:
    """Register a user's task by the "module:Class" of its world, and return its settings class.

    EnvError if there is no such module (the current folder is searched too) or class, or if it is not a task.
    """
    from s2robot.envs.task import Task

    check_gl()
    world = import_class(target, "task.class")
    missing = [n for n in dir(world) if getattr(getattr(world, n), "__isabstractmethod__", False)]
    is_task = isinstance(world, type) and issubclass(world, Task)
    expect(name not in SETTINGS, "task.name", "a name other than this package's tasks", f"'{name}'")
    expect(is_task, "task.class", "a subclass of s2robot.envs.task.Task", target)
    expect(not missing, "task.class", f"a class with {', '.join(missing)}", f"{target} without")
    _USER_TASKS[name] = world.Settings
    return world.Settings


def settings_class_or_base(name: str | None) -> type[TaskSettings]:
    """Return the settings class of a summary's task, or :class:`TaskSettings` if the task is unknown here."""
    name = name or DEFAULT
    return settings_class(name) if name in SETTINGS or name in _USER_TASKS else TaskSettings


def settings_of(stored: Mapping[str, Any], where: str = "env_config", **changes: Any) -> TaskSettings:
    """Return the settings of a dataset's or checkpoint's world; ``changes`` take precedence.

    UserError for an unknown task or key, or a wrong value. A user's task is known once ``task.class`` has named its
    class: a dataset cannot name code to run.
    """
    values = {**stored, **changes}
    return read(settings_class(values.get("task", DEFAULT)), values, where)


def make(settings: TaskSettings, draw: bool = True) -> "Task":
    """Return the world of these settings (EnvError if it cannot be created); without ``draw`` it observes no frames."""
    require_simulator(settings)
    return import_class(settings.target)(settings, draw=draw)


def make_cached(settings: TaskSettings, draw: bool = True) -> "Task":
    """Like :func:`make`, but reuse one of the last few worlds of this process."""
    key = repr(settings), draw  # a dict of cameras cannot be hashed
    world = worlds.pop(key, None) or make(settings, draw)
    if len(worlds) >= _CACHED:
        del worlds[next(iter(worlds))]
    worlds[key] = world
    return world


def import_class(target: str, where: str = "task") -> Any:
    """Return the object at "module:Class"; the current folder is searched too. EnvError about `where` if missing."""
    module, _, name = str(target).partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # missing for console scripts
    what = f"{where}: expected module:Class, got '{target}', which cannot be imported"
    with reported(what, kinds=(ImportError, ValueError, AttributeError), kind=EnvError):
        # ".pusher" would be relative to a package
        return getattr(importlib.import_module(module if name and module[:1] != "." else ""), name)
