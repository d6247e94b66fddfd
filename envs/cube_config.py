"""What decides an episode of CubePick; read and written where no simulator is installed, too."""

from dataclasses import dataclass, field

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.frames import ImageSize, as_image_size, sizes_of
from s2robot.envs.task import TaskSettings

STAGES = ("approach", "grasp", "lift", "held")
ACTION_FRAME = "joint_delta_commanded"  # deltas against the last *commanded* joints
ENV_VERSION = "CubePick-v0"
MAX_DELTA = 0.25  # rad a step and joint


@dataclass(frozen=True)
class CubePickConfig(TaskSettings):
    """All that decides an episode besides its seed. Lengths in m, times in s, angles in rad."""

    task, target, version = "cube_pick", "s2robot.envs.cube_pick:CubePick", ENV_VERSION
    action_frame = ACTION_FRAME
    stages = STAGES
    success_text = "lifted and held the cube"

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
        views = {
            name: (tuple(position), tuple(target), float(fovy))
            for name, (position, target, fovy) in self.side_cameras.items()
        }
        object.__setattr__(self, "side_cameras", views)  # lists where they come from YAML or JSON
        for name, least in (
            ("rate_hz", 1),
            ("max_steps", 1),
            ("start_noise", 0),
            ("success_hold", 0),
        ):
            if not (found := getattr(self, name)) >= least:
                raise EnvError(f"env.{name}: found {found}, expected {least} or more")
        sizes = sizes_of(self.image_size, self.cameras)  # lists where they come from YAML or JSON
        if not isinstance(self.image_size, int):
            object.__setattr__(self, "image_size", as_image_size(sizes))
        for name in ("cube_size", "stiffness"):
            if not (found := getattr(self, name)) > 0:
                raise EnvError(f"env.{name}: found {found}, expected more than 0")

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
