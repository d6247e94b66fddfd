"""Demonstrations on the arm, by hand or by teleoperation, into the store that simulated ones go to.

    s2robot record recording=teach robot.ip=192.168.1.200 out=demos.zarr
    s2robot record recording=teleop robot.ip=192.168.1.200 out=demos.zarr
    s2robot record recording=teleop bridge=emulator out=demos.zarr        # beside a running `s2robot emulate`

For each episode the operator is asked before the arm goes to its start, and again when the cube is to be laid, which
is where the simulated episode of that seed has it. Afterwards: did it succeed, is it kept? Episodes are appended, so a
session may be broken off and taken up again.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.ranges import INFINITY, check_positive, check_ranges
from s2robot.common.settings import read, task_settings
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.operator import check_operator
from s2robot.deployment.panel import Keys, keys
from s2robot.deployment.rig import ConnectedArm
from s2robot.deployment.settings import read_bench
from s2robot.deployment.store import open_store
from s2robot.envs.real.arms.ik import ToolIK
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.recorder import EpisodeRecorder
from s2robot.envs.real.control.watchdog import State
from s2robot.envs.real.operator.prompts import Operator, Placing
from s2robot.envs.real.operator.teach import teach
from s2robot.envs.real.operator.teleop import (
    CONTROLS_HELP,
    HELP,
    Controls,
    Keyboard,
    SpaceMouse,
    Teleoperator,
)

DEVICES = ("keyboard", "spacemouse")


@dataclass(frozen=True)
class ArmRecordingSettings:
    """What `s2robot record` does on an arm; configs/recording/teach.yaml and teleop.yaml say it of each."""

    kind: str
    episodes: int
    seed: int
    max_steps: int
    out: str
    device: str = "keyboard"
    speed: float = 0.1
    turn_speed: float = 0.6

    def __post_init__(self) -> None:
        if self.kind == "teleop" and self.device not in DEVICES:
            raise UserError(f"device: found '{self.device}', expected one of {', '.join(DEVICES)}")
        if self.episodes < 1 or self.max_steps < 1:
            raise UserError(
                f"found episodes {self.episodes} and max_steps {self.max_steps}, expected 1 or more of both"
            )
        check_ranges(self, "", seed=(0, INFINITY))
        check_positive(self, "", "speed", "turn_speed")

    @classmethod
    def of(cls, cfg: DictConfig) -> "ArmRecordingSettings":
        """Of the verb's config."""
        return read(cls, {key: cfg[key] for key in cls.__dataclass_fields__ if key in cfg}, "")


class ArmRecording:
    """`s2robot record` with `recording=teach` or `teleop`.

    Args:
        cfg: of the verb.
        operator: who is asked; a person on the terminal, or the emulator's, if not given.
        read_keys: calls a function with each key while its context lasts.

    Raises:
        UserError: a wrong setting.
    """

    def __init__(self, cfg: DictConfig, operator: Operator | None = None, read_keys: Keys = keys):
        self.settings, self.bench = ArmRecordingSettings.of(cfg), read_bench(cfg)
        self.world = task_settings(cfg, max_steps=self.settings.max_steps)
        if operator is None:
            check_operator(self.bench.bridge)
        self._asked, self._read_keys = operator, read_keys
        self.controls = Controls()

    def run(self) -> EpisodeStore:
        """Record all episodes.

        Raises:
            UserError, EnvError, DatasetError: a wrong setting, no arm, no camera, another dataset, or a fault of the
                arm, which is stopped; earlier episodes are on disk.
        """
        wanted = self.settings
        with ExitStack() as stack:
            arm = ConnectedArm.reach(self.bench, self.world.cameras, stack, self.world.image_size)
            for failed in arm.cameras.failed:
                raise UserError(f"{failed.check}: {failed.text}")
            store = stack.enter_context(self._open_store(arm))
            self.recorder = EpisodeRecorder(store)
            self.operator = self._asked or arm.operator()
            self._make_runtime(arm, stack)
            kept = 0
            # a new place for each attempt, in this session, and behind those kept in the ones before
            begin = (
                max([wanted.seed, *(int(seed) + 1 for seed in store.meta("seed"))])
                if len(store)
                else wanted.seed
            )
            for attempt in range(10 * wanted.episodes):
                if self._episode(begin + attempt):
                    kept += 1
                print(f"{kept} of {wanted.episodes} episodes kept: {store.path}", flush=True)
                if kept == wanted.episodes:
                    break
            return EpisodeStore.open(store.path)

    def _make_runtime(self, arm: ConnectedArm, stack: ExitStack) -> None:
        """The arm's runtime, beside its supervisor, and what moves the arm in it."""
        wanted, world = self.settings, self.world
        # a person who reverses the gripper means it
        loop = arm.bridge.loop_config(world.rate_hz, world.image_size, live=True, gripper_hold=0)
        self._on_key = self.controls.on_key
        if wanted.kind == "teleop":
            self._teleoperator = self._make_teleoperator(arm, loop, stack)
        self.runtime = arm.runtime(
            lambda observation: self._teleoperator.act(self.runtime.loop.commanded), loop, [self.recorder]
        )
        stack.enter_context(arm.watched(self.runtime))

    def _make_teleoperator(self, arm: ConnectedArm, loop: LoopConfig, stack: ExitStack) -> Teleoperator:
        wanted, keyboard = self.settings, Keyboard(self.controls)
        mover: Keyboard | SpaceMouse = keyboard
        self._on_key = keyboard.on_key
        if wanted.device == "spacemouse":
            mover = SpaceMouse(self.controls)
            stack.callback(mover.close)
        return Teleoperator(
            mover, self.controls, ToolIK(arm.bench.robot.name), arm.limits, loop.policy_hz, wanted.speed,
            wanted.turn_speed, loop.max_delta,
        )  # fmt: skip

    # ---------------------------------------------------------------- an episode

    def _episode(self, seed: int) -> bool:
        """One attempt; whether it was kept."""
        self.controls.reset()
        self.recorder.discard()
        self.runtime.ready(self.operator, Placing.draw(self.world, seed))
        broken = self._teach() if self.settings.kind == "teach" else self._teleoperate()
        steps = len(self.recorder)
        if broken:
            print(f"episode of {steps} steps not kept: {broken}", flush=True)
            return False
        if self.controls.discarded or not steps:
            print(f"episode of {steps} steps not kept", flush=True)
            return False
        success = self.operator.success()
        if not self.operator.keep():
            return False
        self.recorder.finish(success=success, seed=seed)
        return True

    def _teach(self) -> str:
        print(f"Lead the arm by hand.   {CONTROLS_HELP}", flush=True)
        with self._read_keys(self._on_key):
            return teach(self.runtime, self.controls, self.settings.max_steps, self.recorder)

    def _teleoperate(self) -> str:
        self._teleoperator.reset()
        print(f"{HELP}   {CONTROLS_HELP}", flush=True)
        with self._read_keys(self._on_key), self.runtime.ends_when(lambda: self.controls.ended):
            result = self.runtime.episode(self.settings.max_steps)
        return "; ".join(result.reasons) if result.state == State.FAULT else ""

    # ---------------------------------------------------------------- files

    def _open_store(self, arm: ConnectedArm) -> EpisodeStore:
        """The store of `out`, made if there is none.

        Raises:
            DatasetError, UserError: one that holds something else.
        """
        wanted, world, path = self.settings, self.world, Path(self.settings.out)
        source = f"{wanted.kind}, {'emulator' if arm.scene else 'arm'}"

        def same(store: EpisodeStore) -> None:
            found = (store.attrs["kind"], store.attrs.get("source"))
            if found != ("images", source):
                raise UserError(f"{path}: found {found[0]} of {found[1]}, expected images of {source}")

        return open_store(
            path, world.robot, world.rate_hz, arm.cameras.facts, world.image_size, wanted.seed, {"source": source}, same
        )  # fmt: skip


def record_on_arm(cfg: DictConfig) -> EpisodeStore:
    """See `ArmRecording.run`."""
    return ArmRecording(cfg).run()
