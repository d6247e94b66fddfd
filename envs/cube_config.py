"""What decides an episode of CubePick; read and written where no simulator is installed, too."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.experts.settings import check_pushes
from s2robot.envs.frames import ImageSize, as_image_size, sizes_of
from s2robot.envs.robots import MOST_HZ, robot_spec
from s2robot.envs.task import TaskSettings

STAGES = ("approach", "grasp", "lift", "held")
ACTION_FRAME = "joint_delta_commanded"  # deltas against the last *commanded* joints
ENV_VERSION = "CubePick-v0"
HABITS = ("nearest", "left", "right", "either")  # faces of the cube that a picker may prefer
# cameras that the world of CubePick has beside the side cameras: the hand's, robosuite's table's and its robot's
_TAKEN = ("hand", "frontview", "birdview", "agentview", "sideview", "robot0_robotview", "robot0_eye_in_hand")
SHUT = 0.15  # the gripper's opening below which, where it touches nothing, it has closed on nothing
GRIPPERS_OPEN = 0.08  # m, the least of the robots'


@dataclass(frozen=True)
class PickerConfig:
    """How the picker moves. Lengths in m, angles in rad, per control step of 0.1 s where it says step."""

    hover: float = 0.10  # height over the grasp from which the cube is approached
    funnel_slope: float = 3.0  # height gained per metre of horizontal error
    funnel_yaw: float = 0.08  # a turn of one rad counts as so many metres of horizontal error
    funnel_mouth: float = 0.008  # horizontal error below which the gripper goes all the way down
    step_xy: float = 0.03  # farthest horizontal move a step
    step_z: float = 0.03  # farthest vertical move a step
    step_yaw: float = 0.35  # farthest turn a step
    close_xy: tuple[float, float] = (0.006, 0.012)  # the gripper closes when nearer than this,
    close_z: float = 0.010  # as low as this
    close_yaw: tuple[float, float] = (0.08, 0.25)  # and turned as well as this; both drawn anew each episode
    grip_steps: int = 0  # steps of contact to wait before lifting; waiting is what a policy clones worst
    open_enough: float = 0.85  # the gripper goes down on the cube only when opened further than this
    lift: float = 0.15  # height to lift the cube to
    kicks: tuple[int, int] = (
        1,
        3,
    )  # perturbations drawn for an episode, least and most; late ones do not come
    kick_steps: tuple[int, int] = (1, 2)  # steps that one lasts
    kick_size: float = 0.05  # farthest horizontal and vertical displacement of a perturbation, m a step
    kick_yaw: float = 0.3  # farthest turn of a perturbation, a step
    misses: float = (
        0.5  # share of the episodes with a grasp beside the cube, so that demos show how to recover
    )
    miss_by: tuple[float, float] = (0.012, 0.04)  # how far beside it, m
    miss_steps: tuple[int, int] = (5, 11)  # steps that the miss lasts
    habit: str = "nearest"  # to which face of the cube: nearest, left or right (habits), or either

    def __post_init__(self) -> None:
        check_pushes(self)
        if self.habit not in HABITS:
            raise EnvError(
                f"recording.picker.habit: found {self.habit!r}, expected one of {', '.join(HABITS)}"
            )


def is_number(value: Any) -> bool:
    """Whether it is one, and finite."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: Any, count: int) -> bool:
    return hasattr(value, "__len__") and len(value) == count and all(map(is_number, value))


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and _are_numbers(value, 2)


def _check_view(name: str, view: Any) -> None:
    """Refuse a side camera that MuJoCo cannot place."""
    key = f"env.side_cameras.{name}"
    if name in _TAKEN:
        raise EnvError(f"{key}: found a name that the world has a camera of already, expected another one")
    parts: Any = view if isinstance(view, list | tuple) and len(view) == 3 else [None] * 3
    place, target, fovy = parts
    numbers = _are_numbers(place, 3) and _are_numbers(target, 3) and is_number(fovy)
    if not numbers or tuple(place) == tuple(target) or not 0 < fovy < 180:
        raise EnvError(
            f"{key}: found {view}, expected [[x, y, z], [x, y, z], fovy]: place, another one as target, "
            "degrees between 0 and 180"
        )


def _farther(view: tuple, factor: float) -> tuple:
    """A side camera (position, target, fovy) at ``factor`` times its distance from the target."""
    position, target, fovy = view
    if factor == 1:  # to the last bit: recorded states are drawn again with the same bytes
        return view
    return tuple(t + factor * (p - t) for p, t in zip(position, target, strict=True)), target, fovy


@dataclass(frozen=True)
class CubePickConfig(TaskSettings):
    """All that decides an episode besides its seed. Lengths in m, times in s, angles in rad."""

    task, target, version = "cube_pick", "s2robot.envs.cube_pick:CubePick", ENV_VERSION
    action_frame = ACTION_FRAME
    stages = STAGES
    success_text = "lifted and held the cube"
    Expert = PickerConfig
    failures: ClassVar[Mapping[str, str]] = {
        "approach": "not grasped",
        "grasp": "grasped, not lifted",
        "lift": "lifted, not held",
        "held": "held, not counted as success",
    }
    placing_keys = ("cube_box",)
    columns_text = (
        'x points away from the robot, y to its left, from the centre of the table. "Closest" is the least distance '
        "between the gripper and the cube's centre."
    )
    plot_layout = "s2robot.envs.cube_picture:plot_layout"
    record_keys: ClassVar = (
        ("cube_xy", _is_point, "[x, y] in metres"),
        ("cube_yaw", is_number, "radians"),
        ("closest_m", lambda v: v is None or is_number(v), "metres or null"),  # on an arm nobody measures it
    )

    robot: str = "xarm7"
    rate_hz: int = 10
    cameras: tuple[str, ...] = ("hand", "left", "right")
    image_size: ImageSize = 256  # px: a side, (height, width), or {camera: either}
    cube_size: float = 0.04  # edge
    box_x: tuple[float, float] = (-0.12, 0.12)  # cube centre, table frame, x away from the robot
    box_y: tuple[float, float] = (-0.16, 0.16)  # y to the robot's left
    yaw: tuple[float, float] = (-np.pi, np.pi)
    start_noise: float = 0.05  # uniform, every joint
    success_height: float = 0.10  # of the cube's centre above its place on the table
    success_hold: float = 0.5  # at that height and in the gripper
    max_steps: int = 80
    stiffness: float = 1000.0  # joint controller, 1/s²
    # what an evaluation may change that demos never showed
    camera_distance: float = 1.0  # of the side cameras from what they look at, times the usual
    camera_shift: float = 0.0  # m, every side camera stands that far to its own right, looking the same way
    lighting: float = 1.0  # brightness of all lights, times the usual
    clutter: int = 0  # other objects on the table, of other colours, drawn but never touched; 8 at most
    # name -> (position, target, vertical field of view in degrees), table frame
    side_cameras: dict = field(
        default_factory=lambda: {
            "left": ((0.34, 0.46, 0.44), (-0.02, 0.0, 0.08), 45.0),
            "right": ((0.34, -0.46, 0.44), (-0.02, 0.0, 0.08), 45.0),
        }
    )

    def __post_init__(self) -> None:
        for name, view in self.side_cameras.items():
            _check_view(name, view)
        for name in ("box_x", "box_y", "yaw"):
            found = getattr(self, name)
            if not _are_numbers(found, 2) or not found[0] <= found[1]:
                text = list(found) if isinstance(found, tuple) else found
                raise EnvError(f"env.{name}: found {text}, expected the least and the most")
        views = {
            name: (tuple(position), tuple(target), float(fovy))
            for name, (position, target, fovy) in self.side_cameras.items()
        }
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise EnvError(f"env.cameras: found {list(self.cameras)}, expected one or more different names")
        object.__setattr__(self, "side_cameras", views)  # lists where they come from YAML or JSON
        for name, least in (
            ("rate_hz", 1),
            ("max_steps", 1),
            ("start_noise", 0),
            ("success_hold", 0),
            ("success_height", 0),
        ):
            if not is_number(found := getattr(self, name)) or not found >= least:
                raise EnvError(f"env.{name}: found {found!r}, expected {least} or more")
        if self.rate_hz > MOST_HZ:
            raise EnvError(f"env.rate_hz: found {self.rate_hz}, expected at most {MOST_HZ}")
        sizes = sizes_of(self.image_size, self.cameras)  # lists where they come from YAML or JSON
        if not isinstance(self.image_size, int):
            object.__setattr__(self, "image_size", as_image_size(sizes))
        for name in ("cube_size", "stiffness"):
            if not is_number(found := getattr(self, name)) or not found > 0:
                raise EnvError(f"env.{name}: found {found!r}, expected more than 0")
        if self.cube_size > GRIPPERS_OPEN:
            raise EnvError(
                f"env.cube_size: found {self.cube_size}, expected at most {GRIPPERS_OPEN} m, what grippers open to"
            )

    def views(self) -> dict[str, tuple]:
        """The side cameras, as far away as is asked for."""
        return {name: _farther(view, self.camera_distance) for name, view in self.side_cameras.items()}

    def placement(self) -> dict[str, Any]:
        return {"cube_box": [list(self.box_x), list(self.box_y)]}

    @property
    def success_rule(self) -> str:
        return f"cube {self.success_height * 100:g} cm up for {self.success_hold:g} s"

    @classmethod
    def layout_of(cls, record: Mapping[str, Any]) -> dict[str, float]:
        """x and y (m, table frame) and yaw (rad) of the cube; of a demo at its first step."""
        if "cube_pose" in record:
            x, y, _, w, _, _, z = map(float, record["cube_pose"])
            return {"x": x, "y": y, "yaw": 2 * np.arctan2(z, w)}
        if "cube_xy" not in record:
            return {}
        return {"x": record["cube_xy"][0], "y": record["cube_xy"][1], "yaw": record["cube_yaw"]}

    @classmethod
    def placing(cls, layout: Mapping[str, float]) -> np.ndarray:
        """In metres: x, y, and the yaw as a point on a circle of 5 cm (four turns alike).  # (4,)"""
        yaw = 4 * layout["yaw"]
        return np.array([layout["x"], layout["y"], 0.05 * np.cos(yaw), 0.05 * np.sin(yaw)])

    @classmethod
    def table(cls, record: Mapping[str, Any]) -> dict[str, str]:
        x, y = (f"{100 * v:+z.1f}" for v in record["cube_xy"])
        closest = record["closest_m"]
        return {
            "cube x (cm)": x,
            "cube y (cm)": y,
            "yaw (°)": f"{np.degrees(record['cube_yaw']):+z.0f}",
            "closest (cm)": "–" if closest is None else f"{100 * closest:.1f}",
        }

    def unrecordable(self) -> str:
        if self.clutter:  # where it lay is no part of a state, so the frames could not be drawn again
            return f"found env.clutter {self.clutter}, expected 0: demos hold states only"
        return ""

    def drawn_by(self) -> dict[str, Any]:
        spec = asdict(robot_spec(self.robot))
        return {"robot": {name: spec[name] for name in spec if name.startswith(("camera_", "base_"))}}

    def undrawn(self) -> str:
        """Why one of the cameras cannot be drawn; empty if all can."""
        known = ("hand", *self.side_cameras)
        for name in (camera for camera in self.cameras if camera not in known):
            return (
                f"env.cameras: found '{name}', expected some of {', '.join(known)}; of another camera the simulation "
                f"must know where it stands: '+env.side_cameras.{name}=[[x,y,z],[x,y,z],45]' (position and what it "
                "looks at, m; vertical field of view, degrees)"
            )
        return ""
