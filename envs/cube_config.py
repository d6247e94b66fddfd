"""Settings of CubePick, usable without the simulator."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from s2robot.core.settings import from_yaml
from s2robot.envs.frames import ImageSize
from s2robot.envs.robots import MAX_HZ, robot_spec
from s2robot.envs.task_settings import Group, Lengths, PushSettings, Range, TaskSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGES = ("approach", "grasp", "lift", "held")
ACTION_FRAME = "joint_delta_commanded"  # deltas against the last *commanded* joints
ENV_VERSION = "CubePick-v0"
# the world's cameras other than the side cameras: the hand's and those of robosuite's table and robot
_RESERVED = "hand frontview birdview agentview sideview robot0_robotview robot0_eye_in_hand".split()
SHUT = 0.15  # opening below which a gripper without contact has closed on nothing
GRIPPERS_OPEN = 0.08  # m, the smaller opening of the two robots' grippers

Point = tuple[float, float, float]
# position, target, vertical field of view (degrees)
View = tuple[Point, Point, Annotated[float, Field(gt=0, lt=180)]]
_TICK = 2.0  # cm, length of the line that shows a cube's yaw in a plot: half a cube
_DASHED: dict[str, Any] = {"ls": (0, (5, 4)), "lw": 1, "alpha": 0.6}


class PickerConfig(PushSettings):
    """How the picker moves. Lengths in m, angles in rad; a step is a control step."""

    hover: float = 0.10  # height above the grasp from which the cube is approached
    funnel_slope: float = 3.0  # height gained per metre of horizontal error
    funnel_yaw: float = 0.08  # metres of horizontal error that one rad of yaw error counts as
    funnel_mouth: float = 0.008  # horizontal error below which the gripper moves all the way down
    step_xy: float = 0.03  # largest horizontal move per step
    step_z: float = 0.03  # largest vertical move per step
    step_yaw: float = 0.35  # largest turn per step
    close_xy: Lengths = (0.006, 0.012)  # the gripper closes if its horizontal error is below this,
    close_z: float = 0.010  # its height error below this
    close_yaw: Lengths = (0.08, 0.25)  # and its yaw error below this; the ranges are sampled per episode
    grip_steps: int = 0  # steps of contact to wait before lifting; policies imitate waiting poorly
    open_enough: float = 0.85  # minimum opening with which the gripper descends on the cube
    lift: float = 0.15  # height to lift the cube to
    habit: Literal["nearest", "left", "right", "either"] = from_yaml()


class CubePickConfig(TaskSettings, at="env", file="env/cube_pick"):
    task: ClassVar[str] = "cube_pick"  # type: ignore[misc]
    target: ClassVar[str] = "s2robot.envs.cube_pick:CubePick"  # type: ignore[misc]
    version = ENV_VERSION
    simulator = True
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
        'x points away from the robot, y to its left, from the centre of the table. "Closest" is the smallest distance '
        "between the gripper and the cube's centre."
    )

    robot: str = "xarm7"  # configs/robot
    rate_hz: int | float = from_yaml(ge=1, le=MAX_HZ)  # an arm may run at a fraction
    cameras: tuple[str, ...] = from_yaml()
    image_size: ImageSize = from_yaml()
    cube_size: float = from_yaml(gt=0, le=GRIPPERS_OPEN)
    box_x: Range = from_yaml()
    box_y: Range = from_yaml()
    yaw: Range = from_yaml()
    start_noise: float = from_yaml(ge=0)
    success_height: float = from_yaml(ge=0)
    success_hold: float = from_yaml(ge=0)
    max_steps: int = from_yaml(ge=1)
    stiffness: float = Field(default=1000.0, gt=0)  # joint controller, 1/s²
    camera_distance: float = from_yaml(ge=0.3, le=5)
    camera_shift: float = from_yaml(ge=-0.5, le=0.5)
    lighting: float = from_yaml(ge=0, le=5)
    clutter: int = from_yaml(ge=0, le=8)
    side_cameras: dict[str, View] = {  # noqa: RUF012  # m, table frame
        "left": ((0.34, 0.46, 0.44), (-0.02, 0.0, 0.08), 45.0),
        "right": ((0.34, -0.46, 0.44), (-0.02, 0.0, 0.08), 45.0),
    }

    @field_validator("side_cameras")
    @classmethod
    def _cameras_can_be_placed(cls, views: dict[str, View]) -> dict[str, View]:
        for name, (position, target, _) in views.items():
            if name in _RESERVED or position == target:
                expected = "a name other than the world's own cameras, and a target other than the position"
                raise ValueError(f"expected {expected}, got '{name}' at {list(position)}")
        return views

    def views(self) -> dict[str, tuple]:
        """Return the side cameras, at the configured distance."""
        if (factor := self.camera_distance) == 1:  # bit-exact, so that recorded states render the same
            return dict(self.side_cameras)
        return {
            name: (tuple(t + factor * (p - t) for p, t in zip(position, target, strict=True)), target, fovy)
            for name, (position, target, fovy) in self.side_cameras.items()
        }

    def placement(self) -> dict[str, Any]:
        return {"cube_box": [list(self.box_x), list(self.box_y)]}

    @property
    def success_rule(self) -> str:
        return f"cube {self.success_height * 100:g} cm up for {self.success_hold:g} s"

    @classmethod
    def layout_of(cls, record: Mapping[str, Any]) -> dict[str, float]:
        """Return x and y (m, table frame) and yaw (rad) of the cube at the start."""
        if "cube_pose" in record:
            x, y, _, w, _, _, z = map(float, record["cube_pose"])
            return {"x": x, "y": y, "yaw": 2 * np.arctan2(z, w)}
        if "cube_xy" not in record:
            return {}
        return dict(zip(("x", "y", "yaw"), (*record["cube_xy"], record["cube_yaw"]), strict=True))

    @classmethod
    def placing(cls, layout: Mapping[str, float]) -> np.ndarray:
        """Return x, y, and the yaw (modulo a quarter turn) as a point on a circle of 5 cm, m.  # (4,)"""
        yaw = 4 * layout["yaw"]
        return np.array([layout["x"], layout["y"], 0.05 * np.cos(yaw), 0.05 * np.sin(yaw)])

    @classmethod
    def draw_layout(
        cls, axes: "Axes", groups: Sequence[Group], about: Mapping[str, Any], small: bool = False
    ) -> None:
        """Draw the table and the groups' cubes, as seen from behind the robot; `small`: without box and yaw."""
        import matplotlib
        from matplotlib.patches import Rectangle

        ink = matplotlib.rcParams["text.color"]
        recorded, usual = about.get("cube_box"), cls()  # else the default box, if every cube lies inside
        box = 100 * np.array(recorded or (usual.box_x, usual.box_y), float)  # cm  # (2, 2): x, y; from, to
        low, high = box.T  # (2,) of everything drawn
        for group in (group for group in groups if group.records):
            layouts = [cls.layout_of(record) for record in group.records]
            x, y, yaw = (np.array([at[name] for at in layouts], float) for name in ("x", "y", "yaw"))  # (n,)
            x, y = 100 * x, 100 * y
            if not small:
                ends = np.stack([y, y + _TICK * np.sin(yaw)]), np.stack([x, x + _TICK * np.cos(yaw)])
                look: dict[str, Any] = {"color": group.colour, "lw": 1.1, "alpha": group.tick_alpha}
                axes.plot(*ends, **look, solid_capstyle="round", zorder=2)
            group.scatter(axes, y, x)
            low, high = np.minimum(low, [x.min(), y.min()]), np.maximum(high, [x.max(), y.max()])
        edge, below = (2.0, 4.0) if small else (2.5, 5.5)
        lower, upper = low - [below, edge], high + edge
        if small and axes.xaxis_inverted():  # a panel next to this one has already widened the view
            (right, left), (bottom, top) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
            lower, upper = np.minimum(lower, [bottom, right]), np.maximum(upper, [top, left])
        # the robot's left is the plot's left
        axes.set(xlim=(upper[1], lower[1]), ylim=(lower[0], upper[0]), aspect="equal")
        font: dict[str, Any] = {"ha": "center", "va": "center", "fontweight": "bold", "color": ink}
        axes.annotate("robot", (0, low[0] - (2.7 if small else 4.4)), fontsize=8 if small else 9, **font)
        axes.grid(alpha=0.12, color=ink, lw=0.8)
        if small:
            axes.set(xlabel="← left   y (cm)   right →", ylabel="x (cm)")
            return
        sides = "← robot's left      y (cm)      robot's right →"
        axes.set(xlabel=sides, ylabel="x (cm)  away from the robot →")
        axes.add_patch(Rectangle((-3, low[0] - 5.5), 6, 2.2, fc=ink, alpha=0.25, lw=0))
        inside = bool((low >= box[:, 0] - 0.1).all() and (high <= box[:, 1] + 0.1).all())
        if recorded is not None or inside:
            depth, width = box[:, 1] - box[:, 0]
            axes.add_patch(Rectangle((box[1, 0], box[0, 0]), width, depth, fill=False, ec=ink, **_DASHED))
            axes.plot([], [], color=ink, label=f"cubes are placed in {depth:.0f} × {width:.0f} cm", **_DASHED)
        axes.plot([], [], color=ink, lw=1.1, label="line: the cube's yaw")

    @classmethod
    def table(cls, record: Mapping[str, Any]) -> dict[str, str]:
        x, y = (f"{100 * v:+z.1f}" for v in record["cube_xy"])
        yaw, closest = f"{np.degrees(record['cube_yaw']):+z.0f}", record["closest_m"]
        near = "–" if closest is None else f"{100 * closest:.1f}"
        return {"cube x (cm)": x, "cube y (cm)": y, "yaw (°)": yaw, "closest (cm)": near}

    def draw_start(self, rng: np.random.Generator) -> tuple[tuple[float, float], float, np.ndarray]:
        """Draw an episode's start: the cube's x, y (m, table frame) and yaw (rad), and the arm's joints (7,) (rad)."""
        xy, yaw = (rng.uniform(*self.box_x), rng.uniform(*self.box_y)), rng.uniform(*self.yaw)
        noise = rng.uniform(-self.start_noise, self.start_noise, 7)
        return xy, yaw, np.array(robot_spec(self.robot).home) + noise

    def recording_problem(self) -> str:
        # a state does not contain its positions, so the frames could not be rendered again
        return f"env.clutter: expected 0 when recording demos, got {self.clutter}" if self.clutter else ""

    def appearance(self) -> dict[str, Any]:
        spec = robot_spec(self.robot)._asdict().items()
        return {"robot": {name: value for name, value in spec if name.startswith(("camera_", "base_"))}}

    def camera_problem(self) -> str:
        """Return why one of the cameras cannot be rendered, or ""."""
        known = ("hand", *self.side_cameras)
        for name in (camera for camera in self.cameras if camera not in known):
            hint = f"'+env.side_cameras.{name}=[[x,y,z],[x,y,z],45]' (position and target, m; field of view, degrees)"
            return f"env.cameras: expected some of {', '.join(known)}, got '{name}'; place it with {hint}"
        return ""
