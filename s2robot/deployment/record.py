"""Demonstrations on the arm, by hand or by teleoperation, into the store that simulated ones go to.

    s2robot record recording=teach robot.ip=192.168.1.200 out=demos.zarr
    s2robot record recording=teleop robot.ip=192.168.1.200 out=demos.zarr
    s2robot record recording=teleop bridge=emulator out=demos.zarr        # beside a running `s2robot emulate`

For each episode the operator is asked before the arm goes to its start, and again when the cube is to be laid, which
is where the simulated episode of that seed has it. Afterwards: did it succeed, is it kept? Episodes are appended, so a
session may be broken off and taken up again.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.settings import env_config
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.arm import JOINT_NAMES, driver_maker
from s2robot.deployment.cameras import start_cameras
from s2robot.deployment.panel import keys
from s2robot.deployment.scene import find_scene
from s2robot.deployment.settings import read_bench
from s2robot.envs.cube_config import ACTION_FRAME, ENV_VERSION
from s2robot.envs.real.arms.ik import ToolIK
from s2robot.envs.real.cameras.camera import CameraReader
from s2robot.envs.real.control.recorder import EpisodeRecorder
from s2robot.envs.real.control.supervisor import Supervisor
from s2robot.envs.real.people.operator import Operator, Placing, TerminalOperator
from s2robot.envs.real.people.teach import TeachConfig, Teaching
from s2robot.envs.real.people.teleop import CONTROLS_HELP, HELP, Controls, Keyboard, SpaceMouse, Teleoperator
from s2robot.envs.real.real_cube_pick import RealCubePick

Keys = Callable[[Callable[[str], None]], AbstractContextManager[None]]
DEVICES = ("keyboard", "spacemouse")


@dataclass
class _Quiet:
    """The operator while keys are read: what needs an answer on the terminal is asked afterwards."""

    operator: Operator
    controls: Controls

    def free(self, fault: tuple[str, ...]) -> bool:
        return self.operator.free(fault)

    def place(self, placing: Placing) -> bool:
        return self.operator.place(placing)

    def ended(self) -> bool:
        return self.controls.ended

    def success(self) -> bool:
        return False

    def keep(self) -> bool:
        return False


class ArmRecording:
    """`s2robot record` with `recording=teach` or `teleop`.

    Args:
        cfg: of the verb.
        operator: who is asked; a person on the terminal, or the emulator's.
        read_keys: calls a function with each key while its context lasts.
    """

    def __init__(self, cfg: DictConfig, operator: Operator | None = None, read_keys: Keys = keys):
        self.cfg, self._operator, self._read_keys = cfg, operator, read_keys
        self.controls = Controls()
        if cfg.kind == "teleop" and cfg.device not in DEVICES:
            raise UserError(f"device: found '{cfg.device}', expected one of {', '.join(DEVICES)}")
        if cfg.episodes < 1 or cfg.max_steps < 1:
            raise UserError(
                f"found episodes {cfg.episodes} and max_steps {cfg.max_steps}, expected 1 or more of both"
            )

    def run(self) -> EpisodeStore:
        """Record all episodes.

        Raises:
            UserError, EnvError, DatasetError: a wrong setting, no arm, no camera, another dataset, or a fault of the
                arm, which is stopped; earlier episodes are on disk.
        """
        cfg = self.cfg
        with ExitStack() as stack:
            self._bench = bench = read_bench(cfg)
            limits = bench.bridge.arm_limits()
            scene = find_scene(bench.bridge, stack)
            make_driver = driver_maker(bench, limits, scene)
            driver = make_driver()
            stack.callback(driver.close)
            driver.connect(bench.bridge.arm.connect_s)
            cameras = start_cameras(bench.bridge, tuple(cfg.env.cameras), scene, stack)
            if cameras.failed:
                raise UserError(f"{cameras.failed[0].check}: {cameras.failed[0].text}")
            self._scene, self._driver, self._readers = scene, driver, cameras.readers
            fovy = {name: camera.fovy for name, camera in cameras.facts.items()}
            store = stack.enter_context(self._open_store(cameras.readers, fovy, scene is not None))
            self.recorder = EpisodeRecorder(store)
            if self._operator is None:
                self._operator = scene.operator() if scene else TerminalOperator()
            make = partial(make_driver, gripper=False)
            supervisor = stack.enter_context(Supervisor(make, bench.bridge.supervisor_s))
            self._make_world(limits, supervisor, stack)
            kept = 0
            for attempt in range(10 * cfg.episodes):
                # a new place for each attempt, in this session and the ones before
                if self._episode(cfg.seed + len(store) + attempt - kept):
                    kept += 1
                print(f"{kept} of {cfg.episodes} episodes kept: {store.path}", flush=True)
                if kept == cfg.episodes:
                    break
            return EpisodeStore.open(store.path)

    def _make_world(self, limits: Any, supervisor: Supervisor, stack: ExitStack) -> None:
        cfg = self.cfg
        config = env_config(cfg, max_steps=cfg.max_steps)
        bridge = self._bench.bridge
        # a person who reverses the gripper means it
        loop = bridge.loop_config(config.rate_hz, config.image_size, live=True, gripper_hold=0)
        assert self._operator is not None
        self.env = RealCubePick(
            self._driver, self._readers, config, _Quiet(self._operator, self.controls), loop,
            bridge.watchdog, bridge.safety, supervisor=supervisor,
            on_step=self.recorder.add, home_speed=bridge.home.speed,
        )  # fmt: skip
        stack.callback(self.env.close)
        self._on_key: Callable[[str], None] = self.controls.on_key
        if cfg.kind == "teach":
            teach = TeachConfig(config.rate_hz, config.image_size, loop.max_delta, loop.ready_s)
            self._teaching = Teaching(
                self._driver, self._readers, self.controls, teach, bridge.watchdog, self.recorder.add
            )  # fmt: skip
            return
        keyboard = Keyboard(self.controls)
        mover: Keyboard | SpaceMouse = keyboard
        self._on_key = keyboard.on_key
        if cfg.device == "spacemouse":
            mover = SpaceMouse(self.controls)
            stack.callback(mover.close)
        self._teleoperator = Teleoperator(
            mover, self.controls, ToolIK(cfg.robot.name), limits, config.rate_hz, cfg.speed, cfg.turn_speed,
            loop.max_delta,
        )  # fmt: skip

    # ---------------------------------------------------------------- an episode

    def _episode(self, seed: int) -> bool:
        """One attempt; whether it was kept."""
        self.controls.reset()
        self.recorder.discard()
        broken = self._teach(seed) if self.cfg.kind == "teach" else self._teleoperate(seed)
        steps = len(self.recorder)
        if broken:
            print(f"episode of {steps} steps not kept: {broken}", flush=True)
            return False
        if self.controls.discarded or not steps:
            print(f"episode of {steps} steps not kept", flush=True)
            return False
        assert self._operator is not None
        success = self._operator.success()
        if not self._operator.keep():
            return False
        self.recorder.finish(success=success, seed=seed)
        return True

    def _teach(self, seed: int) -> str:
        self.env.ready(seed=seed)
        print(f"Lead the arm by hand.   {CONTROLS_HELP}", flush=True)
        with self._read_keys(self._on_key):
            return self._teaching.run(self.cfg.max_steps)

    def _teleoperate(self, seed: int) -> str:
        observation, info = self.env.reset(seed=seed)
        loop = self.env.loop
        self._teleoperator.reset(loop.commanded)
        print(f"{HELP}   {CONTROLS_HELP}", flush=True)
        with self._read_keys(self._on_key):
            over = False
            while not over:
                action = self._teleoperator.act(loop.commanded)
                observation, _, terminated, truncated, info = self.env.step(action)
                over = terminated or truncated
        return "; ".join(info["reasons"]) if info["state"] == "fault" else ""

    # ---------------------------------------------------------------- files

    def _open_store(
        self, readers: dict[str, CameraReader], fovy: dict[str, float | None], emulated: bool
    ) -> EpisodeStore:
        """The store of `out`, made if there is none.

        Raises:
            DatasetError, UserError: one that holds something else.
        """
        cfg, path, names = self.cfg, Path(self.cfg.out), list(readers)
        size, source = int(cfg.env.image_size), f"{cfg.kind}, {'emulator' if emulated else 'arm'}"
        if path.exists():
            store = EpisodeStore.open(path, "a")
            try:
                store.check(cfg.robot.name, ACTION_FRAME, names, cfg.env.rate_hz)
                found = (store.attrs["kind"], store.attrs.get("source"))
                if found != ("images", source):
                    raise UserError(f"{path}: found {found[0]} of {found[1]}, expected images of {source}")
            except BaseException:
                store.close()
                raise
            return store
        geometry = {n: {"size": [size, size]} | ({"fovy": fovy[n]} if fovy[n] else {}) for n in names}
        return EpisodeStore.create(
            path,
            {
                "robot": cfg.robot.name, "joint_names": list(JOINT_NAMES), "rate_hz": cfg.env.rate_hz,
                "cameras": names, "camera_geometry": geometry, "action_frame": ACTION_FRAME,
                "env_version": ENV_VERSION, "env_config": {}, "seed": cfg.seed, "kind": "images", "source": source,
            },
        )  # fmt: skip


def record_on_arm(cfg: DictConfig) -> EpisodeStore:
    """See `ArmRecording.run`."""
    return ArmRecording(cfg).run()
