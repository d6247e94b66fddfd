"""Settings of a task and its expert, and the facts that need no simulator: stages, messages, records, layout plots."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, Self

import numpy as np
from pydantic import AfterValidator, Field, field_validator

from s2robot.core.settings import Settings, from_yaml
from s2robot.envs.frames import ImageSize, as_image_size, sizes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, Any]  # an episode's line of episodes.jsonl


class Group(NamedTuple):
    """Episodes that a plot shows with the same marker."""

    records: Sequence[Record]
    label: str  # for a legend
    marker: str
    colour: str
    size: float  # square points
    front: int = 3  # matplotlib's zorder
    alpha: float = 1.0
    tick_alpha: float = 1.0

    def scatter(self, axes: "Axes", x: np.ndarray, y: np.ndarray) -> None:
        """Draw the markers at x and y (n,)."""
        axes.scatter(
            x, y, s=self.size, marker=self.marker, color=self.colour, alpha=self.alpha, edgecolors="white",
            linewidths=0.5, label=self.label, zorder=self.front,
        )  # fmt: skip


class TaskSettings(Settings):
    """Everything that determines an episode except its seed, and the facts about the task that need no simulator.

    A class variable may be overridden by a property. A subclass has at least the fields that are annotated below.
    """

    if TYPE_CHECKING:  # declared by subclasses, in the order in which their datasets store them
        robot: str = from_yaml()
        rate_hz: Any = from_yaml()
        cameras: tuple[str, ...] = from_yaml()
        image_size: Any = from_yaml()
        max_steps: int = from_yaml()

        task: str = ""  # its name, as in `task=<name>`
        target: str = ""  # the class of its world, "module:Class"

    version: ClassVar[Any] = "1"
    simulator: ClassVar[bool] = False  # whether the world needs the extra `sim`
    action_frame: ClassVar[Any] = "parts"  # meaning of an action; a policy requires the same
    stages: ClassVar[Any] = ("start", "success")
    success_text: ClassVar[Any] = "succeeded"
    failures: ClassVar[Mapping[str, str]] = {}  # stage -> description of an episode that ended there
    placing_keys: ClassVar[tuple[str, ...]] = ()  # keys of :meth:`placement` that the plot shows
    columns_text: ClassVar[str] = ""  # describes the columns of :meth:`table`
    Expert: ClassVar[Any] = None  # class of the scripted expert's settings, if any

    @field_validator("cameras", check_fields=False)
    @classmethod
    def _different_cameras(cls, cameras: tuple[str, ...]) -> tuple[str, ...]:
        if not cameras or len(set(cameras)) != len(cameras):
            raise ValueError(f"expected one or more different names, got {list(cameras)}")
        return cameras

    @field_validator("image_size", check_fields=False)
    @classmethod
    def _shortest_size(cls, image_size: ImageSize, info: Any) -> ImageSize:
        return as_image_size(sizes_of(image_size, info.data.get("cameras", ("?",)), f"{cls.at}.image_size"))

    def recording_problem(self) -> str:
        """Return why demos of this world could not be used, or ""."""
        return ""

    def appearance(self) -> dict[str, Any]:
        """Return what determines a state's frames besides renderer, package versions and these settings."""
        return {}

    def camera_problem(self) -> str:
        """Return why one of the cameras cannot be rendered, if that is known without the world, or ""."""
        return ""

    def seen_as(self, cameras: Sequence[str], names: Mapping[str, str] | None = None) -> Self:
        """Return the settings with the cameras of a dataset or a policy, if all are known."""
        return self.replace(cameras=tuple(cameras)) if {*cameras} <= {*self.cameras} else self

    def about(self) -> dict[str, Any]:
        """Return the facts on the task in a summary, for readers without the task."""
        keys = {"version": self.version, "stages": list(self.stages), "success_text": self.success_text}
        return {"name": self.task, **keys, "failures": dict(self.failures)}

    def placement(self) -> dict[str, Any]:
        """Return the facts on the placement of objects in a summary, by key."""
        return {}

    @property
    def success_rule(self) -> str:
        """The condition for a successful episode."""
        return self.success_text

    @classmethod
    def layout_of(cls, record: Record) -> dict[str, float]:
        """Return an episode's initial layout, from its record or the first step of its demo: numbers by name."""
        return dict(record.get("layout") or {})

    @classmethod
    def placing(cls, layout: Mapping[str, float]) -> np.ndarray:
        """Return a layout as a point, such that similar layouts are close.  # (n,)"""
        return np.array([layout[name] for name in sorted(layout)], float)

    @classmethod
    def table(cls, record: Record) -> dict[str, str]:
        """Return the start and the best progress of a failed episode for a report: column -> text."""
        cells = {name: f"{value:+z.3g}" for name, value in cls.layout_of(record).items()}
        best = record.get("progress")
        return cells | ({} if best is None else {"best progress": f"{best:.3g}"})

    @classmethod
    def draw_layout(
        cls, axes: "Axes", groups: Sequence[Group], about: Mapping[str, Any], small: bool = False
    ) -> None:
        """Plot the layouts of episodes. ``about``: an evaluation's summary; ``small``: one of several plots."""
        layouts = [[cls.layout_of(record) for record in group.records] for group in groups]
        names = sorted({name for group in layouts for layout in group for name in layout})
        for row, name in enumerate(names):
            values = [np.array([layout.get(name, np.nan) for layout in group]) for group in layouts]
            low, high = (f(np.concatenate(values)) for f in (np.nanmin, np.nanmax))
            for i, (group, group_values) in enumerate(zip(groups, values, strict=True)):
                if len(group_values):  # groups slightly offset
                    shift = 0.5 * (i + 0.5) / len(groups) - 0.25
                    position = (group_values - low) / max(high - low, 1e-12)
                    shown = group if row == 0 else group._replace(label="_")
                    shown.scatter(axes, position, np.full(len(group_values), row + shift))
            axes.text(1.02, row, f"{low:.3g} to {high:.3g}", va="center", fontsize=8)
        if not names:
            axes.text(0.5, 0.5, "this task has no layout", ha="center", va="center", transform=axes.transAxes)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set(xlim=(-0.05, 1.3), xticks=[], xlabel="minimum → maximum")


class CommonSettings(TaskSettings, at="task"):
    """Settings that most tasks share; your own task may add fields. A value in its YAML overrides a default here."""

    task: str = Field(default="", alias="name")
    target: str = Field(default="", alias="class")
    robot: str = "none"  # a policy acts only on the robot of its demos
    rate_hz: float = Field(default=10, gt=0)  # control steps per second
    cameras: tuple[str, ...] = ("front",)  # in the order in which the policy gets them
    image_size: ImageSize = 256  # px: a side, (height, width), or {camera: either}
    max_steps: int = Field(default=100, ge=1)  # after which an episode ends


def _ordered(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    if not pair[0] <= pair[1]:
        raise ValueError(f"expected a minimum and a maximum, got {list(pair)}")
    return pair


Ordered = AfterValidator(_ordered)
Range = Annotated[tuple[float, float], Ordered]
NotNegative = Annotated[float, Field(ge=0)]
Lengths = Annotated[tuple[NotNegative, NotNegative], Ordered]
_Count = Annotated[int, Field(ge=0, le=12)]  # kicks are drawn from a dozen steps
Kicks = Annotated[tuple[_Count, _Count], Ordered]
_Step = Annotated[int, Field(ge=1)]
Steps = Annotated[tuple[_Step, _Step], Ordered]
Share = Annotated[float, Field(ge=0, le=1)]


class PushSettings(Settings, at="recording.picker", file="recording/default"):
    """Perturbations of a scripted expert; configs/recording/default.yaml documents each value."""

    kicks: Kicks = from_yaml()
    kick_steps: Steps = from_yaml()
    kick_size: NotNegative = from_yaml()
    kick_yaw: NotNegative = from_yaml()
    misses: Share = from_yaml()
    miss_by: Lengths = from_yaml()
    miss_steps: Steps = from_yaml()
