"""The tasks by name: their settings, their worlds, and what is known of them where no simulator is installed.

settings = read_task({"name": "robosuite", "env": "Stack"}, read)
make(settings).reset(seed=0)
settings_of(store.attrs["env_config"])       # the world of a dataset or a checkpoint
"""

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from s2robot.envs.errors import EnvError
from s2robot.envs.gl import check_gl
from s2robot.envs.task import TaskSettings, as_tuples

if TYPE_CHECKING:
    from s2robot.envs.task import Task

_KEPT = 3  # worlds of 60 MB; a worker needs one for each kind of demos
_worlds: dict[tuple[str, bool], "Task"] = {}  # the latest asked for last
DEFAULT = "cube_pick"  # what a dataset, a checkpoint or a summary that names no task is of
# name -> its settings; their class says where the world is
SETTINGS = {
    "cube_pick": "s2robot.envs.cube_config:CubePickConfig",
    "robosuite": "s2robot.envs.robosuite_config:RobosuiteSettings",
    "lift": "s2robot.envs.robosuite_config:LiftSettings",
    "stack": "s2robot.envs.robosuite_config:StackSettings",
    "can": "s2robot.envs.robosuite_config:CanSettings",
    "square": "s2robot.envs.robosuite_config:SquareSettings",
    "gym": "s2robot.envs.gym_config:GymSettings",
}
_OWN: dict[str, type[TaskSettings]] = {}  # tasks of the user's own that this process has read the settings of


def settings_class(name: str) -> type[TaskSettings]:
    """The settings of the task ``name``.

    Raises:
        EnvError: there is none of that name; says which there are.
    """
    if name in _OWN:
        return _OWN[name]
    if name not in SETTINGS:
        near = get_close_matches(str(name), SETTINGS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(SETTINGS)}"
        raise EnvError(
            f"task: found '{name}', {hint}; a task of your own names its class: task.class=module:Class"
        )
    return _found(SETTINGS[name])


def own_settings(name: str, target: str) -> type[TaskSettings]:
    """The settings of a task of the user's own: ``target`` is "module:Class" of its world, found as Python finds it, the
    current folder included.

    Raises:
        EnvError: no such module or class, or one that is no task.
    """
    from s2robot.envs.task import Task

    if name in SETTINGS:
        raise EnvError(f"task.name: found '{name}', which is a task of this package; expected another name")
    check_gl()
    world = _found(target, "task.class")
    if not (isinstance(world, type) and issubclass(world, Task)):
        raise EnvError(f"task.class: found {target}, which is no subclass of s2robot.envs.task.Task")
    lacking = [n for n in dir(world) if getattr(getattr(world, n), "__isabstractmethod__", False)]
    if lacking:
        raise EnvError(f"task.class: {target} lacks {', '.join(lacking)}, which every task defines")
    _OWN[name] = world.Settings
    return world.Settings


def known_as(name: str | None) -> type[TaskSettings]:
    """What is known of the task that a record's summary names, :class:`TaskSettings` itself of one from elsewhere."""
    name = name or DEFAULT
    return settings_class(name) if name in SETTINGS or name in _OWN else TaskSettings


def settings_of(stored: Mapping[str, Any], where: str = "env_config", **changes: Any) -> TaskSettings:
    """The settings that a dataset or a checkpoint holds of its world; ``changes`` win.

    Raises:
        EnvError: of a task that is not known here, or with keys that its settings lack. A task of the user's own is
            known where its class was named (``task.class``): a dataset cannot name code to run.
    """
    cls = settings_class(stored.get("task", DEFAULT))
    values = {**stored, **changes}
    if unknown := sorted(set(values) - {f.name for f in fields(cls)}):  # type: ignore[arg-type]
        raise EnvError(f"{where} holds {unknown}, expected keys of the task {stored.get('task', DEFAULT)}")
    return cls(**as_tuples(values))


def make(settings: TaskSettings, draw: bool = True) -> "Task":
    """The world of these settings; without ``draw`` its observations hold no frames.

    Raises:
        EnvError: what the world refuses.
    """
    check_gl()
    return _found(settings.target)(settings, draw=draw)


def kept(settings: TaskSettings, draw: bool = True) -> "Task":
    """:func:`make`, or the world of these settings that this process has from before; it keeps the last few."""
    key = repr(settings), draw  # a table of cameras cannot be hashed
    world = _worlds.pop(key, None) or make(settings, draw)
    if len(_worlds) >= _KEPT:
        del _worlds[next(iter(_worlds))]
    _worlds[key] = world
    return world


def _found(target: str, where: str = "task") -> Any:
    """The class "module:Class"."""
    module, _, name = str(target).partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a program's own start leaves it out
    try:
        # ".pusher" would be relative to a package, and there is none
        found = importlib.import_module(module) if module and name and module[0] != "." else None
    except ImportError as error:
        if not (isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")):
            raise EnvError(f"{where}: {module} cannot be imported: {error}") from None
        found = None
    if found is None:
        raise EnvError(f"{where}: found '{target}', expected module:Class that Python finds from here")
    if not hasattr(found, name):
        raise EnvError(f"{where}: found '{target}', but {found.__file__} defines no {name}")
    return getattr(found, name)
