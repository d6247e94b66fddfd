"""DAgger on the arm: a policy acts, a person corrects it, and the episode goes into a copy of the policy's demos.

    s2robot record recording=dagger checkpoint=runs/train/<date>/checkpoint demos.path=teleop.zarr robot.ip=192.168.1.200
    s2robot record recording=dagger checkpoint=… demos.path=teleop.zarr bridge=emulator      # beside `s2robot emulate`

For each position the operator is asked as in any recording. Then the policy acts; space takes over and gives back. An
episode in which the person acted is appended, the policy's own steps marked as `perturbed`, which are never imitated.
Where the policy needs no help there is nothing to append.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.files import read_json, write_json
from s2robot.common.ranges import INFINITY, check_positive, check_ranges
from s2robot.common.settings import DemosSettings, read, read_among, task_settings
from s2robot.demos.lineage import CORRECTIONS, began_with, left_to_try
from s2robot.demos.replay import camera_sizes
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.log import CAUSES
from s2robot.deployment.operator import check_operator
from s2robot.deployment.panel import Keys, keys
from s2robot.deployment.policy import make_policy
from s2robot.deployment.record import Quiet
from s2robot.deployment.rig import ConnectedArm
from s2robot.deployment.settings import Host, PolicySettings, read_bench
from s2robot.deployment.store import open_corrections
from s2robot.envs.cube_config import ACTION_FRAME
from s2robot.envs.errors import EnvError
from s2robot.envs.frames import as_image_size
from s2robot.envs.real.arms.driver import OK
from s2robot.envs.real.arms.ik import ToolIK
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.recorder import EpisodeRecorder
from s2robot.envs.real.control.safety import Verdict
from s2robot.envs.real.control.subscriber import Silent
from s2robot.envs.real.people.handover import HANDOVER_HELP, Buttons, Handover, Led, Shared
from s2robot.envs.real.people.operator import Operator
from s2robot.envs.real.people.teach import LedArm, TeachConfig, Teaching
from s2robot.envs.real.people.teleop import HELP, Keyboard, SpaceMouse, Teleoperator
from s2robot.policies import check_contract

DEVICES = ("keyboard", "spacemouse", "hand")
VALUES = {"seed", "success", "cause", "speed"}  # what is known of a corrected episode
# what a corrected step has beside its pictures; `recorder` of envs/real/control says what each is
_STEP = {
    "action",
    "proprio",
    "time",
    "time_action",
    "camera_age",
    "action_raw",
    "action_sent",
    "verdict",
    "code",
}


@dataclass(frozen=True)
class PersonSettings:
    """`arm` of configs/recording/dagger.yaml, which says what each is."""

    device: str = "keyboard"
    speed: float = 0.1
    turn_speed: float = 0.6
    max_steps: int = 400

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise UserError(f"arm.device: found '{self.device}', expected one of {', '.join(DEVICES)}")
        if self.max_steps < 1:
            raise UserError(f"arm.max_steps: found {self.max_steps}, expected 1 or more")
        check_positive(self, "arm", "speed", "turn_speed")


@dataclass(frozen=True)
class CorrectionSettings:
    """What of configs/recording/dagger.yaml counts on an arm."""

    checkpoint: str | None = None
    weights: str | None = None
    device: str = "auto"
    episodes: int = 128
    seed: int = 200_000
    out: str = ""
    arm: PersonSettings = field(default_factory=PersonSettings)

    def __post_init__(self) -> None:
        if self.checkpoint is None:
            raise UserError("checkpoint: found none, expected the folder of a trained policy")
        if self.episodes < 1:
            raise UserError(f"episodes: found {self.episodes}, expected 1 or more")
        check_ranges(self, "", seed=(0, INFINITY))

    @property
    def policy(self) -> PolicySettings:
        """What acts, in this process."""
        return PolicySettings(self.checkpoint, self.weights, Host(device=self.device, threads=None))


class ArmCorrection:
    """`s2robot record recording=dagger` on an arm.

    Args:
        cfg: of the verb.
        operator: who is asked; a person on the terminal, or the emulator's, if not given.
        read_keys: calls a function with each key while its context lasts.

    Raises:
        UserError, DatasetError: a wrong setting; demos that are no images.
    """

    def __init__(self, cfg: DictConfig, operator: Operator | None = None, read_keys: Keys = keys):
        self.settings, self.bench = read_among(CorrectionSettings, cfg, ""), read_bench(cfg)
        demos = read(DemosSettings, cfg.demos, "demos")
        self.demos, self.first = EpisodeStore.open(demos.folder()), demos.first()
        if (kind := self.demos.attrs["kind"]) != "images":
            raise UserError(
                f"{self.demos.path}: found demos of {kind}, expected images: an arm's episodes cannot be appended to "
                "others (s2robot record recording=teleop records images)"
            )
        self.world = task_settings(cfg, max_steps=self.settings.arm.max_steps)
        if operator is None:
            check_operator(self.bench.bridge)
        self._asked, self._read_keys = operator, read_keys
        self.handover = Handover()

    def run(self) -> EpisodeStore:
        """Let the policy try all positions.

        Raises:
            UserError, EnvError, PolicyError, DatasetError: a policy of another robot, cameras, rate or action frame; no
                arm, no camera; another dataset; a fault of the arm, which is stopped; earlier episodes are on disk.
        """
        wanted = self.settings
        with ExitStack() as stack:
            self.policy = make_policy(wanted.policy, self.bench.bridge, stack)
            cameras = self.demos.cameras
            self.size = as_image_size(camera_sizes(self.demos, cameras))
            check_contract(
                self.policy.contract, robot=self.demos.robot, action_frame=ACTION_FRAME, cameras=list(cameras),
                rate_hz=self.demos.attrs["rate_hz"],
            )  # fmt: skip
            arm = ConnectedArm.reach(self.bench, cameras, stack, self.size)
            for failed in arm.cameras.failed:
                raise UserError(f"{failed.check}: {failed.text}")
            store = stack.enter_context(open_corrections(Path(wanted.out), self.demos, self.first))
            self.operator = self._asked or arm.operator()
            self._corrections = _Corrections(store, self.bench.bridge.speed)
            self._recorder = EpisodeRecorder(self._corrections)
            self._make_world(arm, stack)
            positions = range(wanted.seed, wanted.seed + wanted.episodes)
            _note_positions(store, positions)
            todo, _ = left_to_try(store, began_with(self.demos, self.first), positions)
            for seed in todo:
                print(
                    f"position {seed}: {self._episode(seed)}; {len(store)} episodes: {store.path}", flush=True
                )
            return EpisodeStore.open(store.path)

    def _make_world(self, arm: ConnectedArm, stack: ExitStack) -> None:
        """The environment, beside its supervisor, and who acts in it."""
        person, bridge = self.settings.arm, arm.bridge
        # slower than the demos where the bridge is; an action is what it was
        rate = self.policy.rate_hz * bridge.speed
        loop = bridge.loop_config(rate, self.size, live=True)
        world = self.world.replace(cameras=tuple(arm.readers), image_size=self.size, rate_hz=rate)
        hears = _Same(self._recorder, self._corrections.wanted)
        self.env = arm.cube_pick(world, Quiet(self.operator, self.handover), loop, subscriber=hears)
        stack.enter_context(arm.watched(self.env.runtime))
        stack.callback(self.env.close)
        self._teaching: Teaching | None = None
        teleoperator = None
        if person.device == "hand":
            teach = TeachConfig(rate, self.size, loop.max_delta, loop.ready_s)
            self._on_key = self.handover.on_key
            runtime = self.env.runtime
            self._teaching = Teaching(
                cast(LedArm, runtime.driver), arm.readers, Led(self.handover), teach, bridge.watchdog, hears,
                beat=runtime.beat, rest=runtime.rest,
            )  # fmt: skip
        else:
            teleoperator = self._make_teleoperator(arm, loop, stack)
        self.shared = Shared(
            self.policy.act, self.policy.reset, self.handover, teleoperator, lambda: self.env.loop.commanded
        )

    def _make_teleoperator(self, arm: ConnectedArm, loop: LoopConfig, stack: ExitStack) -> Teleoperator:
        person, keyboard, speed = self.settings.arm, Keyboard(self.handover), arm.bridge.speed
        mover: Keyboard | SpaceMouse = keyboard
        self._on_key = keyboard.on_key
        if person.device == "spacemouse":
            mover = SpaceMouse(Buttons(self.handover))
            stack.callback(mover.close)
        return Teleoperator(
            mover, self.handover, ToolIK(arm.bench.robot.name), arm.limits, loop.policy_hz, person.speed * speed,
            person.turn_speed * speed, loop.max_delta,
        )  # fmt: skip

    # ---------------------------------------------------------------- an episode

    def _episode(self, seed: int) -> str:
        """One position; what became of it."""
        self.handover.reset()
        self._recorder.discard()
        observation, _ = self.env.reset(seed=seed)
        self.shared.begin()
        print(f"The policy acts.   {HANDOVER_HELP}   {HELP}", flush=True)
        with self._read_keys(self._on_key):
            broken = self._act(observation)
        steps = len(self._recorder)
        if broken or self.handover.discarded or not self.shared.corrected:
            why = broken or ("discarded" if self.handover.discarded else "the policy needed no help")
            return f"{steps} steps not kept ({why})"
        success = self.operator.success()
        if not self.operator.keep():
            return f"{steps} steps not kept"
        self._corrections.persons = self.shared.persons
        self._recorder.finish(success=success, seed=seed)
        return f"corrected, {sum(self.shared.persons)} of {steps} steps by the person"

    def _act(self, observation: dict) -> str:
        """All steps of an episode; why it broke off."""
        while True:
            if self.shared.leads:
                if (broken := self._lead()) or self._done():
                    return broken
                observation, _ = self.env.resume(self._left())
                continue
            try:
                action = self.shared.act(observation)
            except EnvError:  # of the arm or a device
                raise
            except Exception as error:  # whatever a policy raises stops the arm, as in a deployment
                self.env.close()
                return f"policy: {type(error).__name__}: {' '.join(str(error).split())}"
            observation, _, terminated, truncated, info = self.env.step(action)
            self.shared.acted(info["executed"])
            if terminated or truncated:
                return "; ".join(info["reasons"]) if info["state"] == "fault" else ""

    def _lead(self) -> str:
        """The person leads the arm until it is given back; why that broke off."""
        assert self._teaching is not None
        self.env.close()
        self.shared.take()
        before = len(self._recorder)
        broken = self._teaching.run(self._left())
        self.shared.led(len(self._recorder) - before)
        return broken

    def _left(self) -> int:
        return self.settings.arm.max_steps - len(self._recorder)

    def _done(self) -> bool:
        return self.handover.ended or self._left() < 1


class _Same(Silent):
    """Hears of steps by the loop and by hand, and passes on what the demos hold of them.

    Where a person leads the arm nothing is sent: what it did stands for what was said and sent, and nothing was wrong.
    """

    def __init__(self, recorder: EpisodeRecorder, wanted: set[str]):
        self._recorder, self._wanted = recorder, wanted

    def on_step(self, step: dict) -> None:
        """See `Subscriber`."""
        action = step["action"]
        led = {
            "action_raw": action,
            "action_sent": action,
            "verdict": np.uint8(Verdict.PASS),
            "code": np.int32(OK),
        }
        given = {**led, **step}
        self._recorder.on_step({key: value for key, value in given.items() if key in self._wanted})


class _Corrections:
    """A `Sink` that marks the policy's steps."""

    def __init__(self, store: EpisodeStore, speed: float):
        self._store, self._speed = store, speed
        self.wanted = set(store.keys) - {"perturbed"}
        self.persons: list[bool] = []
        known = _STEP | {f"images_{camera}" for camera in store.cameras}
        if other := sorted(self.wanted - known) + sorted(set(store.meta_keys) - VALUES):
            raise UserError(
                f"{store.path}: found demos with {', '.join(other)}, which corrections do not have; expected those of an arm"
            )

    def append(self, episode: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> None:
        """See `Sink`."""
        policy = ~np.array(self.persons, bool)
        meta = {**(meta or {}), "speed": self._speed}
        if "cause" in self._store.meta_keys:  # demos that a deployment has recorded
            meta["cause"] = CAUSES.index("ended")
        self._store.append({**episode, "perturbed": policy.astype(np.uint8)}, meta)


def _note_positions(store: EpisodeStore, positions: range) -> None:
    """Store beside the episodes which positions are tried, whether or not they need help."""
    file, now = store.path / CORRECTIONS, {"positions": [positions.start, positions.stop]}
    before = read_json(file) if file.exists() else []
    if now not in before:
        write_json(file, [*before, now])


def correct_on_arm(cfg: DictConfig) -> EpisodeStore:
    """See `ArmCorrection.run`."""
    return ArmCorrection(cfg).run()
