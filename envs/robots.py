"""The arms of the joint-space task: their names in robosuite, start poses and hand cameras.

A new arm is one more ``RobotSpec``: its robosuite name, a home pose with the gripper pointing down over the
table's centre, the joint of the gripper's opening, and the two finger bodies.
"""

from typing import NamedTuple

from s2robot.envs.errors import check_known

MAX_HZ = 500  # robosuite steps its physics by 2 ms; at a higher control rate no step would fit into a control period


class RobotSpec(NamedTuple):
    """One arm with a parallel gripper. Lengths in m, angles in rad, frames as in MuJoCo."""

    robosuite_name: str
    base_x: float  # the base's distance from the table's centre along x (negative: behind the table)
    home: tuple[float, ...]  # (7,) start joints, gripper straight down
    gripper_joint: str  # the joint that opens the gripper
    gripper_open: float  # its value when open
    gripper_closed: float  # its value when closed
    finger_bodies: tuple[str, str]
    camera_body: str  # the body that carries the hand camera
    camera_pos: tuple[float, float, float]  # in that body's frame
    camera_target: tuple[float, float, float]  # the point it looks at, in that frame
    camera_up: tuple[float, float, float]  # the direction that is up in its image: away from the robot
    camera_fovy: float  # degrees


ROBOTS = {
    "xarm7": RobotSpec(
        robosuite_name="XArm7",
        base_x=-0.46,
        home=(0.0, 0.0115, 0.0, 0.7031, 0.0, 0.6916, 0.0),
        gripper_joint="gripper0_right_left_driver_joint",
        gripper_open=0.0,
        gripper_closed=0.85,
        finger_bodies=("gripper0_right_left_finger", "gripper0_right_right_finger"),
        camera_body="robot0_right_hand",
        camera_pos=(-0.11, 0.0, 0.03),
        camera_target=(-0.03, 0.0, 0.17),
        camera_up=(-1.0, 0.0, 0.0),
        camera_fovy=75.0,
    ),
    "panda": RobotSpec(
        robosuite_name="Panda",
        base_x=-0.5,
        home=(0.0, 0.1094, 0.0, -2.5686, 0.0, 2.6781, 0.7859),
        gripper_joint="gripper0_right_finger_joint1",
        gripper_open=0.04,
        gripper_closed=0.0,
        finger_bodies=("gripper0_right_leftfinger", "gripper0_right_rightfinger"),
        camera_body="robot0_right_hand",
        camera_pos=(0.09, 0.0, 0.0),
        camera_target=(0.02, 0.0, 0.15),
        camera_up=(1.0, 0.0, 0.0),
        camera_fovy=75.0,
    ),
}


def robot_spec(name: str) -> RobotSpec:
    """Return the spec of ``name``; EnvError lists the known names for an unknown one."""
    check_known("robot", [name], ROBOTS)
    return ROBOTS[name]
