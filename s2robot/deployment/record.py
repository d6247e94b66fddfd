"""Demonstrations and corrections on an arm, stored in the same format as simulated ones.

In each episode, the operator must agree before the arm moves to its start, and then places the cube as in the simulated
episode of that seed. Afterwards the operator answers whether it succeeded and whether to keep it. Episodes are appended, so
a session may be interrupted and resumed.

In DAgger a policy acts; space takes over or hands back control. An episode in which the person acted is appended to a copy
of the policy's demos, with the policy's steps marked as `perturbed`, which are never imitated.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from omegaconf import DictConfig

from s2robot.config import DemosSettings, path_of, task_settings
from s2robot.core.errors import UserError, one_of
from s2robot.core.settings import Positions, from_yaml, plain, read, read_some
from s2robot.demos.lineage import left_to_try, note_round
from s2robot.demos.replay import camera_sizes
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.arm import ConnectedArm
from s2robot.deployment.operator import Keys, check_operator, keys
from s2robot.deployment.session import ArmSession, Rig
from s2robot.deployment.settings import HostSettings, read_bench
from s2robot.deployment.store import CAUSES, open_corrections, open_store
from s2robot.envs.cube_config import ACTION_FRAME
from s2robot.envs.errors import expect
from s2robot.envs.frames import as_image_size
from s2robot.envs.real.arms.description import BUILT_IN
from s2robot.envs.real.arms.driver import OK
from s2robot.envs.real.arms.geometry import ToolIK
from s2robot.envs.real.control.safety import Verdict
from s2robot.envs.real.control.subscriber import EpisodeRecorder
from s2robot.envs.real.control.supervisor import UNCONFIRMED
from s2robot.envs.real.operator import teleop
from s2robot.envs.real.operator.prompts import Operator
from s2robot.policies import check_contract


class ArmRecordingSettings(Positions, file="recording/teleop"):
    kind: Literal["teach", "teleop", "dagger"]
    out: Path
    device: Literal["keyboard", "spacemouse", "hand"] = from_yaml()
    speed: float = from_yaml(gt=0)
    turn_speed: float = from_yaml(gt=0)
    max_steps: int = from_yaml(ge=1)


class ArmRecording:
    """`s2robot record` with `recording=teach`, `teleop` or `dagger`; `operator` and `read_keys` as in `ArmSession`."""

    def __init__(self, cfg: DictConfig, operator: Operator | None = None, read_keys: Keys = keys):
        self.settings = _read_settings(cfg)
        self.bench, self.by_hand = read_bench(cfg), self.settings.device == "hand"
        supported = self.bench.model == BUILT_IN and not self.bench.bridge.simulated
        # `ToolIK` and manual mode work only with the xArm7
        expect(supported, "robot", "xarm7 or its emulator for recording", self.bench.name)
        self.corrects = self.settings.kind == "dagger"
        self.controls = teleop.Controls(shared=self.corrects)
        self.demos = self._open_demos(cfg) if self.corrects else None
        self.world = task_settings(cfg, max_steps=self.settings.max_steps)
        if operator is None:
            check_operator(self.bench.bridge)
        self._cfg, self._options = cfg, {"operator": operator, "read_keys": read_keys}

    def run(self) -> EpisodeStore:
        """Record all episodes, or let the policy try all positions.

        Raises UserError, EnvError or DatasetError: a wrong setting, no arm or camera, another dataset, an
        incompatible policy, or a fault of the arm, which is then stopped; earlier episodes are on disk.
        """
        world = self.world
        with ExitStack() as stack:
            rig = None if self.demos is None else self._connect_rig(stack, self.demos)
            arm = rig.arm if rig else ConnectedArm(self.bench, world.cameras, stack, world.image_size)
            for failed in arm.failed:
                raise UserError(f"{failed.check}: {failed.text}")
            store = stack.enter_context(self._open_store(arm))
            self.recorder = CorrectionRecorder(store, arm.bridge.speed) if rig else EpisodeRecorder(store)
            self.session = self._session_on(arm, rig, stack)
            stack.enter_context(self.session.started())
            kept = 0
            for seed in self._seeds(store):
                why = self._episode(seed)
                kept += not why
                outcome = f"not kept ({why})" if why else "kept"
                print(f"position {seed}: {outcome}; {len(store)} episodes: {store.path}", flush=True)
                if kept == self.settings.episodes:
                    break
            else:
                print(f"{kept} of {self.settings.episodes} episodes were kept", flush=True)
            return EpisodeStore.open(store.path)

    def _open_demos(self, cfg: DictConfig) -> EpisodeStore:
        path_of(cfg, "checkpoint")
        settings = read(DemosSettings, cfg.demos)
        demos, self.first = EpisodeStore.open(settings.folder()), settings.first()
        hint = " for appending an arm's episodes (s2robot record recording=teleop records such demos)"
        one_of(f"{demos.path}: kind", demos.attrs["kind"], ["images"], hint)
        return demos

    def _connect_rig(self, stack: ExitStack, demos: EpisodeStore) -> Rig:
        own = {key: self._cfg[key] for key in ("checkpoint", "weights", "device")}
        rig = Rig(self._cfg, stack, HostSettings(**own, url=None))
        check_contract(
            rig.policy.contract, robot=demos.robot, action_frame=ACTION_FRAME, cameras=list(demos.cameras),
            rate_hz=demos.attrs["rate_hz"],
        )  # fmt: skip
        rig.check(self.bench.run_dir / "camera_check.png", live=True)
        return rig

    def _session_on(self, arm: ConnectedArm, rig: Rig | None, stack: ExitStack) -> ArmSession:
        world, demos, controls, person = self.world, self.demos, self.controls, self.settings
        if rig is None or demos is None:
            # a person reverses the gripper intentionally
            own = {"policy_hz": world.rate_hz, "image_size": world.image_size, "gripper_hold": 0}
            loop = arm.bridge.loop.replace(**own, live=True)
        else:  # scaled by the bridge's speed; the size of an action stays the same
            loop = rig.loop_config(True, as_image_size(camera_sizes(demos, demos.cameras)))
        self.teleoperator, on_key = None, controls.on_key
        if not self.by_hand:
            mover: teleop.Keyboard | teleop.SpaceMouse
            if person.device == "keyboard":
                mover = teleop.Keyboard(controls)
                on_key = mover.on_key
            else:
                mover = teleop.SpaceMouse(controls)
                stack.callback(mover.close)
            pace = arm.bridge.speed if rig else 1.0
            self.teleoperator = teleop.Teleoperator(
                mover, controls, ToolIK(), arm.limits, loop.policy_hz, person.speed * pace, person.turn_speed * pace,
                loop.max_delta,
            )  # fmt: skip
        options: dict[str, Any] = {
            **self._options, "loop": loop, "take_key": on_key, "over": lambda: controls.ended or self._leads
        }  # fmt: skip
        if rig is None:
            reset = self.teleoperator.reset if self.teleoperator else lambda: None
            return ArmSession(arm, self._act, subscribers=[self.recorder], reset_policy=reset, **options)
        acting = rig.policy.act, rig.policy.reset, controls, self.teleoperator
        self.shared = teleop.SharedControl(*acting, self._commanded)
        return rig.session([self.recorder, self.shared], act=self.shared.act, disagreement=None, **options)

    def _act(self, observation: dict) -> np.ndarray:
        assert self.teleoperator is not None
        return self.teleoperator.act(self._commanded())

    def _commanded(self) -> np.ndarray:
        return self.session.runtime.loop.stream.commanded

    @property
    def _leads(self) -> bool:
        """Whether the person guides the arm by hand."""
        return self.by_hand and self.controls.person

    def _open_store(self, arm: ConnectedArm) -> EpisodeStore:
        """Open the dataset `out`. Raises DatasetError, UserError: another dataset."""
        settings, world = self.settings, self.world
        if self.demos is not None:
            return open_corrections(settings.out, self.demos, self.first, arm.readers)
        same = {"source": f"{settings.kind}, {'emulator' if arm.scene else 'arm'}"}
        return open_store(
            settings.out, arm.bench, world.rate_hz, arm.cameras, world.image_size, same, seed=settings.seed
        )

    def _seeds(self, store: EpisodeStore) -> Iterable[int]:
        settings = self.settings
        if self.demos is not None:
            positions = settings.positions
            note_round(store.path, {"positions": [positions.start, positions.stop]})
            return left_to_try(store, len(self.demos.lengths[: self.first]), positions)[0]
        # a new position for each attempt of this session, after those stored by earlier sessions
        stored = [int(seed) + 1 for seed in store.meta("seed")] if len(store) else []
        begin = max([settings.seed, *stored])
        return range(begin, begin + 10 * settings.episodes)

    def _episode(self, seed: int) -> str:
        """Record one position; return why it was not kept."""
        controls, recorder, session = self.controls, self.recorder, self.session
        recorder.discard()
        if self.corrects:
            self.shared.begin()
        session.begin()
        session.ready(self.world, seed)
        controls.reset()  # drop SpaceMouse buttons pressed while the cube was placed
        motion = "Guide the arm by hand." if self.by_hand else teleop.HELP
        print(f"{motion}   {teleop.HANDOVER_HELP if self.corrects else teleop.CONTROLS_HELP}", flush=True)
        session.operator.watch()
        aborted, max_steps = "", self.settings.max_steps
        try:
            while not (aborted or controls.ended) and (left := max_steps - len(recorder)) > 0:
                aborted = self._lead(left) if self._leads else session.act(left).fault
                session.check_stop()
        finally:
            session.operator.rest()
        if aborted or controls.discarded or not len(recorder):
            return f"{len(recorder)} steps, {aborted or 'discarded'}"
        if self.corrects and not any(self.shared.persons):
            return "the policy needed no help"
        meta: dict[str, Any] = {"persons": self.shared.persons} if self.corrects else {}
        success, keep = False, True  # if a question is interrupted
        try:
            success = session.operator.success()
            keep = session.operator.keep()
        finally:
            if keep:
                session.store(recorder, success=success, seed=seed, **meta)
        return "" if keep else "discarded by the operator"

    def _lead(self, steps: int) -> str:
        """Let the person guide the arm until they hand back control; return why that was aborted, or ""."""
        session, recorder, before = self.session, self.recorder, len(self.recorder)
        session.operator.watch(brakes=False)
        session.operator.acting = True
        if self.corrects:
            self.shared.take()
        aborted = teleop.teach(session.runtime, self.controls, steps, recorder)
        if self.corrects:
            self.shared.led(len(recorder) - before)
        return aborted or ("" if session.runtime.confirmed else UNCONFIRMED)


class CorrectionRecorder(EpisodeRecorder):
    """Stores which steps are the policy's, with the keys of the demos.

    While a person guides the arm, no command is sent: the executed action replaces the raw and sent ones, without faults.
    """

    def __init__(self, store: EpisodeStore, speed: float):
        super().__init__(store)
        self._keys = set(store.keys) - {"perturbed"}
        self._meta: dict[str, Any] = {"speed": speed}
        if "cause" in store.meta_keys:  # demos recorded by a deployment
            self._meta["cause"] = CAUSES.index("ended")

    def on_step(self, step: dict) -> None:
        defaults = dict.fromkeys(("action_raw", "action_sent"), step["action"])
        complete = {**defaults, "verdict": np.uint8(Verdict.PASS), "code": np.int32(OK), **step}
        super().on_step({key: value for key, value in complete.items() if key in self._keys})

    def finish(self, persons: Iterable[bool] = (), **meta: Any) -> int:
        """See `EpisodeRecorder`; `persons`: whether the person acted, per step."""
        for step, person in zip(self._steps, persons, strict=True):
            step["perturbed"] = np.uint8(not person)
        return super().finish(**meta, **self._meta)


def _read_settings(cfg: DictConfig) -> ArmRecordingSettings:
    if cfg.kind != "dagger":
        settings = read_some(ArmRecordingSettings, cfg)
        return settings.replace(device="hand") if cfg.kind == "teach" else settings
    own = read_some(ArmRecordingSettings, {key: cfg[key] for key in ("kind", "episodes", "seed", "out")})
    return read(ArmRecordingSettings, {**own.model_dump(), **plain(cfg.arm)}, "arm")
