"""Success of a policy on an arm, over the positions that every simulated evaluation has.

    s2robot evaluate --live evaluate=arm checkpoint=<folder> robot.ip=192.168.1.200
    s2robot evaluate --live evaluate=arm checkpoint=<folder> bridge=emulator     # beside a running `s2robot emulate`

The operator lays each cube where it is asked for, says when the arm may move, and judges; on the emulator nobody has
to. The policy acts as in `s2robot deploy`, through the same runtime. A fault fails its episode: the arm is stopped, and
the operator is asked before the next one. Each record is on disk when its episode ends; the same command
in the same run folder goes on with those that are missing.
"""

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.files import read_json, write_json
from s2robot.common.ranges import INFINITY, check_ranges
from s2robot.common.settings import read, task_settings
from s2robot.core.provenance import policy_sha256
from s2robot.demos.lineage import Lineage
from s2robot.deployment.operator import KEYS_HELP, WatchingOperator, check_operator
from s2robot.deployment.panel import Keys, keys
from s2robot.deployment.rig import Rig
from s2robot.deployment.scene import Scene
from s2robot.deployment.settings import read_bridge
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.real.control.safety import Safe, Verdict
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.control.watchdog import State
from s2robot.envs.real.operator.prompts import Operator, Placing
from s2robot.envs.real.operator.stop import Stop
from s2robot.evaluation.journal import Journal, write_records
from s2robot.evaluation.records import summarise
from s2robot.evaluation.summary import facts, world_changes
from s2robot.evaluation.video import write_video
from s2robot.policies import check_contract

ARM, EMULATED = "arm", "emulated arm"  # where an episode took place
TRIES = 3  # attempts at bringing the arm to the start of an episode
# settings of a scene that is drawn; and what the emulator's own scene decides
_LOOKS: tuple[str, ...] = ("camera_distance", "camera_shift", "lighting", "clutter")
_JUDGED: tuple[str, ...] = ("cube_size", "success_height", "success_hold")


@dataclass(frozen=True)
class ArmEvaluationSettings:
    """The node `evaluate`; configs/evaluate/arm.yaml says it of each."""

    world: str
    episodes: int
    seed: int
    videos: bool
    video_size: int
    resume: bool

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise UserError(f"evaluate.episodes: found {self.episodes}, expected 1 or more")
        check_ranges(self, "evaluate", seed=(0, INFINITY))

    @classmethod
    def of(cls, cfg: DictConfig) -> "ArmEvaluationSettings":
        """Of the verb's config. Raises UserError for what cannot go well, before anything is connected."""
        if not cfg.live:
            raise UserError(
                "live: found false, expected true (`--live`): an evaluation moves the arm; nothing was done "
                "(`s2robot deploy` has a dry run)"
            )
        settings = read(cls, cfg.evaluate, "evaluate")
        check_operator(read_bridge(cfg.bridge))
        return settings


def evaluate_on_arm(cfg: DictConfig, out: Path) -> dict[str, Any]:
    """Evaluate a checkpoint; writes what a simulated evaluation writes to `out`, and returns the summary.

    Raises:
        UserError, EnvError: a wrong setting, something that the pre-flight refuses, an operator who said no, or an
            arm that does not come to the start of an episode; ended episodes are on disk.
        KeyboardInterrupt: the operator stopped the arm; likewise.
    """
    settings = ArmEvaluationSettings.of(cfg)
    with ExitStack() as stack:
        rig = Rig.connect(cfg, stack)
        rig.check(out / "camera_check.png", live=True)
        return ArmEvaluation(rig, settings, task_settings(cfg), out).run()


class ArmEvaluation:
    """All episodes of one evaluation.

    Args:
        rig: connected and checked.
        settings: of the verb.
        world: the simulated one whose positions, rate and length of an episode it has.
        out: run folder.
        operator: who is asked; a person on the terminal, or the emulator's, if not given.
        read_keys: calls a function with each key while its context lasts.
    """

    def __init__(
        self,
        rig: Rig,
        settings: ArmEvaluationSettings,
        world: CubePickConfig,
        out: Path,
        operator: Operator | None = None,
        read_keys: Keys = keys,
    ):
        self.rig, self.settings, self.out = rig, settings, out
        contract, arm = rig.policy.contract, rig.arm
        check_contract(contract, cameras=list(world.cameras), rate_hz=world.rate_hz)
        self.config = world.replace(cameras=tuple(arm.readers), image_size=rig.policy.image_size)
        _check_world(self.config, arm.scene)
        positions = range(settings.seed, settings.seed + settings.episodes)
        lineage = Lineage.of(contract, name=rig.source.name)
        lineage.refuse(positions, rig.source.name, "evaluate.seed")
        if lineage.note:
            print(f"note: {lineage.note}")
        self.changes = world_changes(contract.get("env_config", {}), self.config)
        self.world = EMULATED if arm.scene else ARM
        self.stop = Stop()
        self.operator = WatchingOperator(operator or arm.operator(), self.stop, read_keys)
        self.journal = Journal(out / "episodes.jsonl", self._identity() if settings.resume else None)
        self.timing: dict[str, float] = defaultdict(float)  # s

    def run(self) -> dict[str, Any]:
        """See `evaluate_on_arm`."""
        start, episodes = time.monotonic(), self.settings.episodes
        if self.changes:
            print(f"note: this world is not the demos': {'; '.join(self.changes)}")
        todo = [e for e in range(episodes) if e not in self.journal.records]
        if len(todo) < episodes:
            print(f"{episodes - len(todo)} of {episodes} episodes were done before", flush=True)
        try:
            if todo:
                self._run(todo)
        except BaseException:
            done = sum(e < episodes for e in self.journal.records)
            print(f"{done} of {episodes} episodes are done; hydra.run.dir={self.out} goes on", flush=True)
            raise
        self.timing["wall"] = time.monotonic() - start
        records = [self._filmed(self.journal.records[e]) for e in range(episodes)]
        write_records(records, self.journal.path)
        summary = self._summary(records)
        write_json(self.out / "summary.json", summary)
        return summary

    def _run(self, todo: list[int]) -> None:
        self.told = _Told(self.rig.policy.reset)
        self.runtime = self.rig.runtime(True, [self.told], self.stop)
        self.rate = self.runtime.loop.config.policy_hz
        with self.rig.arm.watched(self.runtime):
            try:
                for episode in todo:
                    self._episode(episode)
            finally:
                self.operator.rest()

    # ---------------------------------------------------------------- an episode

    def _episode(self, episode: int) -> None:
        """One position, from the operator's word to the record on disk."""
        operator, told, seed = self.operator, self.told, self.settings.seed + episode
        placing, cause, fault = self._attempts(seed)
        ended = operator.t_end or time.monotonic()
        operator.rest()
        if self.stop.asked():  # neither a success nor a failure
            raise KeyboardInterrupt
        self.timing["acting"] += ended - told.begun
        success = cause != "fault" and operator.success()
        record = {
            "episode": episode, "seed": seed, "cube_xy": [round(float(v), 5) for v in placing.cube_xy],
            "cube_yaw": round(float(placing.cube_yaw), 5), "success": success,
            "stage": "held" if success else operator.stage(), "steps": len(told.actions),
            # on an arm an end that nobody told is that of the last step
            "time_to_success_s": round(ended - told.begun, 3) if success and operator.t_end else None,
            "closest_m": None if operator.closest is None else round(operator.closest, 5), "video": None,
            "world": self.world, "speed": self.rig.arm.bridge.speed, "fault": fault, "holds": told.holds,
            "verdicts": dict(told.verdicts), "policy_seed": self.rig.policy.seed(),
        }  # fmt: skip
        if (disagreement := self.rig.policy.mean_disagreement()) is not None:
            record["disagreement"] = round(disagreement, 6)
        operator.trouble = fault
        self._keep(record, told)

    def _attempts(self, seed: int) -> tuple[Placing, str, str]:
        """The scene, the cause of the episode's end, and its fault; what goes wrong before motion is tried again."""
        for attempt in range(1, TRIES + 1):
            start = time.monotonic()
            self.operator.begin()
            self.told.begin()
            try:
                placing = Placing.draw(self.config, seed)
                self.runtime.ready(self.operator, placing)
                return placing, *self._act()
            except EnvError as error:
                self.operator.rest()
                if self.stop.asked():
                    raise KeyboardInterrupt from None
                if self.operator.refused:
                    raise UserError("the operator said no, expected a yes before the arm moves") from None
                if self.told.begun:
                    return placing, "fault", str(error)
                if attempt == TRIES:
                    raise
                print(f"attempt {attempt} of {TRIES} at the start of seed {seed}: {error}", flush=True)
                self.operator.trouble = str(error)
            finally:
                self.timing["reset"] += (self.told.begun or time.monotonic()) - start
        raise AssertionError("the last attempt returns or raises")

    def _act(self) -> tuple[str, str]:
        """The policy's part, as `s2robot deploy` runs it: the cause of its end, and the fault."""
        runtime = self.runtime
        try:
            runtime.arm()
            if self.stop.asked():
                raise KeyboardInterrupt
            if self.operator.person:
                print(f"The policy acts. {KEYS_HELP}", flush=True)
            with runtime.ends_when(self.operator.ended):
                result = runtime.run(self.config.max_steps)
            self.timing["policy"] += float(result.latencies.sum())
            return result.cause if result.state != State.FAULT else "fault", "; ".join(result.reasons)
        finally:
            runtime.driver.stop("end of the episode")
            if self.told.begun:
                self.told.see(runtime.loop.sensors.observe(self.config.image_size)["images"])

    def _keep(self, record: dict[str, Any], told: "_Told") -> None:
        """The record on disk, with its actions, and the video."""
        self.journal.append(record, np.stack(told.actions) if told.actions else np.zeros((0, 8), np.float32))
        self._tell(record)
        if self.settings.videos:
            path, size = self.out / _video_of(record["episode"]), self.settings.video_size
            write_video(path, told.frames, record, rate=self.rate, height=size)

    def _tell(self, record: dict[str, Any]) -> None:
        done = [r for e, r in self.journal.records.items() if e < self.settings.episodes]
        outcome = "success" if record["success"] else "no success"
        fault = f", FAULT: {record['fault']}" if record["fault"] else ""
        print(
            f"episode {record['episode'] + 1} of {self.settings.episodes} (seed {record['seed']}): {outcome}, "
            f"{record['steps']} steps{fault}; {sum(r['success'] for r in done)} of {len(done)} succeeded",
            flush=True,
        )

    # ---------------------------------------------------------------- files

    def _filmed(self, record: dict[str, Any]) -> dict[str, Any]:
        name = _video_of(record["episode"])
        return {**record, "video": name if (self.out / name).exists() else None}

    @property
    def _spec(self) -> dict[str, Any] | None:
        """Of the policy; None where another machine has it."""
        checkpoint = self.rig.source.checkpoint
        return read_json(Path(checkpoint) / "policy.json")["spec"] if checkpoint else None

    def _identity(self) -> dict[str, Any]:
        """All that decides an episode besides its number."""
        source, contract, arm = self.rig.source, self.rig.policy.contract, self.rig.arm
        if source.checkpoint:
            policy = policy_sha256(Path(source.checkpoint))
        else:
            policy = hashlib.sha256(json.dumps(contract, sort_keys=True).encode()).hexdigest()
        return {
            "world": self.world,
            "robot.ip": arm.bench.robot.ip if self.world == ARM else None,
            "policy": policy,
            "policy.spec": self._spec,  # execute, ensemble and steps of a head leave the weights as they are
            "encoder": contract["encoder"]["fingerprint"],
            "evaluate.seed": self.settings.seed,
            "env": self.config.model_dump(),
            "bridge": arm.bridge.described(),
        }

    def _summary(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        source, contract = self.rig.source, self.rig.policy.contract
        return {
            **summarise(records),
            **facts(self.config, contract, self.changes, self.settings.seed),
            **({"success_rule": "the operator's judgement"} if self.world == ARM else {}),
            "world": self.world,
            "faults": sum(bool(r["fault"]) for r in records),
            "holds": sum(r["holds"] for r in records),
            "policy": self._spec or {"url": source.host.url},
            "bridge": self.rig.arm.bridge.described(),
            "timing": {f"{name}_s": round(seconds, 2) for name, seconds in self.timing.items()},
        }


def _video_of(episode: int) -> str:
    return f"videos/episode_{episode:04d}.mp4"


class _Told(Subscriber):
    """What an episode's steps tell. `begun`: s, monotonic, when the policy began to act; 0 before.

    Args:
        forget: makes the policy begin anew.
    """

    def __init__(self, forget: Callable[[], None]):
        self._forget = forget
        self.begin()

    def begin(self) -> None:
        """A new attempt."""
        self.frames: list[dict] = []
        self.actions: list[np.ndarray] = []
        self.verdicts: Counter[str] = Counter()
        self.holds, self.begun, self._held = 0, 0.0, False  # holds: steps before which the arm had to wait

    def on_begin(self) -> None:
        """See `Subscriber`."""
        self._forget()
        self.begun = time.monotonic()

    def on_period(self, now: float, state: State, safe: Safe | None) -> None:
        """See `Subscriber`."""
        self._held |= state == State.HOLD

    def on_step(self, step: dict) -> None:
        """See `Subscriber`."""
        self.see({k.removeprefix("images_"): v for k, v in step.items() if k.startswith("images_")})
        self.actions.append(step["action_raw"])
        self.verdicts[Verdict(step["verdict"]).name] += 1
        self.holds, self._held = self.holds + self._held, False

    def see(self, images: dict) -> None:
        """A frame of the video."""
        self.frames.append(images)


def _check_world(config: CubePickConfig, scene: Scene | None) -> None:
    """Refuse settings that only a simulated world could follow."""
    if scene is None:
        there, names, whose = CubePickConfig().model_dump(), _LOOKS, "on an arm, where nothing is drawn"
    else:
        there = scene.world()
        names, whose = _LOOKS + _JUDGED, "as the running `s2robot emulate` has it"
    for name in names:
        if getattr(config, name) != there[name]:
            raise UserError(f"env.{name}: found {getattr(config, name)}, expected {there[name]} {whose}")
