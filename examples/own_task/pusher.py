"""Your own task: a finger pushes a puck onto a mark. Written with MuJoCo, without robosuite."""

from dataclasses import dataclass

import mujoco
import numpy as np

from s2robot.envs.renderer import OffscreenRenderer
from s2robot.envs.task import CommonSettings, Task

SLIDE = '<joint name="{0}x" type="slide" axis="1 0 0" damping="{1}"/><joint name="{0}y" type="slide" axis="0 1 0" damping="{1}"/>'
SCENE = f"""<mujoco><option timestep="0.01"/><worldbody><light pos="0 0 2"/><camera name="top" pos="0 0 .9" fovy="45"/>
<geom type="plane" size=".5 .5 .1" rgba=".8 .8 .8 1" group="1"/>
<geom type="cylinder" size=".05 .001" pos=".2 0 .001" rgba=".2 .7 .3 1" contype="0" conaffinity="0" group="1"/>
<body pos="0 0 .03">{SLIDE.format("puck_", 4)}<geom type="cylinder" size=".04 .02" mass=".2" rgba=".8 .2 .1 1" group="1"/></body>
<body pos="0 0 .03">{SLIDE.format("finger_", 9)}<geom type="sphere" size=".015" mass=".1" rgba=".1 .2 .8 1" group="1"/></body>
</worldbody><actuator><position joint="finger_x" kp="90"/><position joint="finger_y" kp="90"/></actuator></mujoco>"""
MARK = np.array([0.2, 0.0])


class PusherSettings(CommonSettings):
    near: float = 0.03  # m, distance of the puck to the mark
    success_text = "pushed the puck onto the mark"


class Pusher(Task):
    Settings = PusherSettings
    action_parts = [{"name": "finger", "size": 2, "kind": "delta", "low": [-0.03] * 2, "high": [0.03] * 2}]
    proprio_parts = [{"name": "finger", "size": 2, "kind": "absolute"}]

    def __init__(self, settings, draw=True):
        self.settings, self.draw = settings, draw
        self.model = mujoco.MjModel.from_xml_string(SCENE)
        self.data, self._renderer = mujoco.MjData(self.model), None
        self.spaces([-0.03] * 2, [0.03] * 2, 2)

    puck = property(lambda self: self.data.qpos[:2].copy())
    proprio = property(lambda self: self.data.qpos[2:].astype(np.float32))
    progress = property(lambda self: -float(np.linalg.norm(self.puck - MARK)))
    is_success = property(lambda self: -self.progress < self.settings.near)
    layout = property(lambda self: {"x": float(self.start[0]), "y": float(self.start[1])})

    def begin(self, rng, options):
        mujoco.mj_resetData(self.model, self.data)
        self.start = rng.uniform([-0.1, -0.15], [0.05, 0.15])
        self.data.qpos[:] = [*self.start, -0.25, 0]
        self.data.ctrl[:] = self.data.qpos[2:]
        mujoco.mj_forward(self.model, self.data)

    def apply(self, action):
        self.data.ctrl[:] += np.clip(action, -0.03, 0.03)
        mujoco.mj_step(self.model, self.data, 10)

    def render_cameras(self):
        self._renderer = self._renderer or OffscreenRenderer(self.model, self.camera_sizes["top"])
        return {"top": self._renderer.render(self.data, 0)}

    def expert(self, rng, settings=None):
        return Push(self)


@dataclass
class Push:
    env: Pusher

    def act(self):  # move behind the puck, then push it onto the mark
        puck, finger = self.env.puck, self.env.data.ctrl
        away = (puck - MARK) / np.linalg.norm(puck - MARK)
        off = (finger - puck) @ away, np.cross(away, finger - puck)  # distance behind it and to its side
        target = MARK if off[0] > 0 and abs(off[1]) < 0.01 else puck + 0.075 * away
        step = target - finger
        return (step * min(1, 0.03 / max(np.linalg.norm(step), 1e-9))).astype(np.float32)
