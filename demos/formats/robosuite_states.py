"""hdf5 files without observations: robosuite's own recordings, and robomimic's before `dataset_states_to_obs.py`.

    RobosuiteStates(Path("demo.hdf5"), Choice(cameras=("agentview",), image_size=84))

Each state is set in the world that the file specifies, in the scene that its demo stores (`model_file`), and images and
proprioception are read there.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.core.errors import UserError
from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.formats.robomimic import HAND, DemoFile, array_of, open_file
from s2robot.demos.formats.source import Choice, Piece, piece_slices, require
from s2robot.demos.schema import check_finite
from s2robot.envs.robosuite_config import RobosuiteSettings
from s2robot.envs.tasks import make

# of `env_kwargs`: rendering, and settings of `task=robosuite` itself
NOT_THE_WORLD = (
    "env_name", "robots", "controller_configs", "control_freq", "renderer", "has_renderer", "has_offscreen_renderer",
    "render_camera", "render_gpu_device_id", "use_camera_obs", "use_object_obs", "reward_shaping", "hard_reset",
    "ignore_done", "camera_names", "camera_heights", "camera_widths", "camera_depths", "camera_segmentations", "seed",
    "lite_physics", "horizon",
)  # fmt: skip


class RobosuiteStates(DemoFile):
    """One file; see :class:`Source`."""

    def _prepare(self, data: Any, first: Any, args: dict[str, Any]) -> None:
        require("robosuite", "mujoco", extra="sim")
        for name, count in zip(self._demos, self.lengths, strict=True):
            array_of(data[name], "states", self.path, count)
        self.keys["action"] = list(self.choice.action or ("actions",))
        for key in self.keys["action"]:
            array_of(first, key, self.path)
        self._version = str(args.get("env_version") or "an unknown version")
        with self._named(f"{self.path}: env_args"):
            self._world, self._scene = _world(self.path, args, self.choice), ""
        s, world = self._world.settings, self._world
        self.describe_world(first, args, s.env, s.robot, s.rate_hz, world.camera_sizes, world.proprio_parts)

    @contextmanager
    def _named(self, where: str) -> Iterator[None]:
        """Name the place and the version of robosuite in an error."""
        try:
            yield
        except UserError as error:
            raise DatasetError(f"{where} (of robosuite {self._version}): {error}") from None

    def pieces_of(self, number: int) -> Iterator[Piece]:
        where, count = self.name_of(number), self.lengths[number]
        with open_file(self.path) as file:
            demo = file["data"][self._demos[number]]
            states = demo["states"][:]
            check_finite(f"{where}: states", states)
            scene = demo.attrs.get("model_file")
            if scene not in (None, self._scene):
                with self._named(f"{where}: model_file"):
                    if "ep_meta" in demo.attrs and hasattr(self._world.raw, "set_ep_meta"):
                        self._world.raw.set_ep_meta(json.loads(demo.attrs["ep_meta"]))
                    self._world.load_scene(scene)
                self._scene = scene
            actions = self.scaled([array_of(demo, k, self.path, count)[:] for k in self.keys["action"]])
        row = sum(height * width * 3 for height, width in self._world.camera_sizes.values())
        for rows in piece_slices(0, count, row):
            with self._named(f"{where}: states"):
                steps = [self._observe(state) for state in states[rows]]
            piece = {key: np.stack([step[key] for step in steps]) for key in steps[0]}
            yield piece | {"action": actions[rows]}

    def _observe(self, state: np.ndarray) -> Piece:
        self._world.show(state)
        images = self._world.render_cameras()
        return {"proprio": self._world.proprio} | {f"images_{k}": image for k, image in images.items()}


def _world(path: Path, args: dict[str, Any], choice: Choice) -> Any:
    """Make the world that a file specifies (UserError: none, or one that the installed robosuite lacks)."""
    name, kwargs = args.get("env_name"), dict(args.get("env_kwargs", {}))
    if args.get("type", 1) != 1 or not name:
        got = f"{name or 'no world'}, type {args.get('type')}"
        raise mismatch(f"{path}: data", "obs, or states of a world of robosuite's (type 1)", got)
    robots = kwargs.get("robots", "Panda")
    robots = [robots] if isinstance(robots, str) else list(robots)
    hands = [key.replace("robot0", f"robot{i}") for i in range(len(robots)) for key in HAND]
    eyes = [f"robot{i}_eye_in_hand" for i in range(len(robots))]
    cameras = choice.cameras or kwargs.get("camera_names") or ("agentview", *eyes)
    sides = [kwargs.get(key) for key in ("camera_heights", "camera_widths")]
    return make(
        RobosuiteSettings(
            env=str(name),
            robot="+".join(robots),
            rate_hz=choice.rate_hz or float(kwargs.get("control_freq", 20)),
            cameras=(cameras,) if isinstance(cameras, str) else tuple(cameras),
            image_size=choice.image_size or (sides if all(isinstance(s, int) for s in sides) else 256),
            proprio=tuple(choice.proprio or hands),
            kwargs={k: v for k, v in kwargs.items() if k not in NOT_THE_WORLD},
        )
    )
