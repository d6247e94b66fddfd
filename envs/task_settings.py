"""Settings of a task, which also tell what is known of it where no simulator is installed: stages, words, records."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.frames import ImageSize, as_image_size, sizes_of

Record = Mapping[str, Any]  # of an episode: one line of episodes.jsonl


@dataclass(frozen=True)
class Group:
    """Episodes that a picture shows alike."""

    records: Sequence[Record]
    label: str  # for a legend
    marker: str
    colour: str
    size: float  # square points
    front: int = 3  # what is drawn later hides what was before
    alpha: float = 1.0
    tick_alpha: float = 1.0

    def scatter(self, axes: Any, x: np.ndarray, y: np.ndarray) -> None:
        """The marks, at x and y (n,) of the axes."""
        axes.scatter(
            x, y, s=self.size, marker=self.marker, color=self.colour, alpha=self.alpha, edgecolors="white",
            linewidths=0.5, label=self.label, zorder=self.front,
        )  # fmt: skip


def _layout_is(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, int | float) for v in value.values())


class TaskSettings:
    """All that decides an episode besides its seed, and what is known of the task without its simulator.

    Below it stand frozen dataclasses with at least the fields that are annotated here. What is a class variable may be
    a property.
    """

    robot: str
    rate_hz: Any
    cameras: tuple[str, ...]
    image_size: Any
    max_steps: int

    task: Any = ""  # its name, as in `task=<name>`
    target: Any = ""  # the class of its world, "module:Class"
    version: Any = "1"
    action_frame: Any = "parts"  # what an action is; a policy acts only where it is the same
    stages: Any = ("start", "success")
    success_text: Any = "succeeded"
    failures: ClassVar[Mapping[str, str]] = {}  # stage -> what an episode that got no further did
    # what its records hold of layout and progress: key, check, and what was expected
    record_keys: ClassVar[Sequence[tuple[str, Callable[[Any], bool], str]]] = (
        ("layout", _layout_is, "numbers by name"),
    )
    # what draws the table with a mark for each record, "module:function" of (axes, groups, summary, small)
    plot_layout: ClassVar[str] = ""
    placing_keys: ClassVar[tuple[str, ...]] = ()  # of :meth:`placement`: the picture shows them
    columns_text: ClassVar[str] = ""  # what the columns of :meth:`table` are

    Expert: ClassVar[Any] = (
        None  # settings of the scripted expert, a frozen dataclass; without, a plain dict of them
    )

    def unrecordable(self) -> str:
        """Why demos of this world could not be used; else empty."""
        return ""

    def drawn_by(self) -> dict[str, Any]:
        """What decides frames drawn from states beside the renderer, the packages' versions and the settings."""
        return {}

    def undrawn(self) -> str:
        """Why one of the cameras cannot be drawn, where that is known without the world; else empty."""
        return ""

    def about(self) -> dict[str, Any]:
        """What a summary says of the task, for whoever reads it without the task."""
        return {
            "name": self.task, "version": self.version, "stages": list(self.stages), "success_text": self.success_text,
            "failures": dict(self.failures),
        }  # fmt: skip

    def placement(self) -> dict[str, Any]:
        """What a summary says of where things are placed, by key."""
        return {}

    @property
    def success_rule(self) -> str:
        """When an episode has succeeded."""
        return self.success_text

    @classmethod
    def layout_of(cls, record: Record) -> dict[str, float]:
        """Where an episode began, from its record or the first step of its demo: numbers by name."""
        return dict(record.get("layout") or {})

    @classmethod
    def placing(cls, layout: Mapping[str, float]) -> np.ndarray:
        """A layout as a point, near that of layouts that are alike.  # (n,)"""
        return np.array([layout[name] for name in sorted(layout)], float)

    @classmethod
    def table(cls, record: Record) -> dict[str, str]:
        """What a report's table of failures says of where an episode began and how near it came: column -> text."""
        cells = {name: f"{value:+z.3g}" for name, value in cls.layout_of(record).items()}
        best = record.get("progress")
        return cells | ({} if best is None else {"best progress": f"{best:.3g}"})


@dataclass(frozen=True)
class CommonSettings(TaskSettings):
    """Settings that most tasks share; a task of one's own may add fields. Every value in YAML has a comment."""

    task: str = ""
    target: str = ""
    robot: str = "none"  # whose arm it is: a policy acts only on the robot of its demos
    rate_hz: float = 10  # control steps a second
    cameras: tuple[str, ...] = ("front",)  # in the order in which the policy gets them
    image_size: ImageSize = 256  # px: a side, (height, width), or {camera: either}
    max_steps: int = 100  # after which an episode ends

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise EnvError(f"task.max_steps: found {self.max_steps}, expected 1 or more")
        if not self.rate_hz > 0:
            raise EnvError(f"task.rate_hz: found {self.rate_hz}, expected more than 0")
        if len(set(self.cameras)) != len(self.cameras) or not self.cameras:
            raise EnvError(f"task.cameras: found {list(self.cameras)}, expected one or more different names")
        sizes = sizes_of(self.image_size, self.cameras, "task.image_size")
        if not isinstance(self.image_size, int):  # lists where they come from YAML or JSON
            object.__setattr__(self, "image_size", as_image_size(sizes))


def as_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from YAML or JSON, whose lists become the tuples that frozen settings hold."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
