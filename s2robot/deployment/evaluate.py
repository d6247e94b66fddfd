"""Evaluation of a policy on an arm, over the same positions as in a simulated evaluation.

The operator places each cube, permits motion, and judges; the emulator needs no operator. A fault fails its episode: the
arm is stopped, and the operator must agree before the next one. The same command in the same run directory resumes.
"""

import hashlib
import json
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from omegaconf import DictConfig

from s2robot.config import task_settings
from s2robot.core.errors import UserError, one_of
from s2robot.core.files import read_json, write_json
from s2robot.core.provenance import policy_sha256
from s2robot.core.settings import Positions, from_yaml, read
from s2robot.demos.lineage import Lineage
from s2robot.deployment.arm import Scene
from s2robot.deployment.operator import KEYS_HELP, check_operator
from s2robot.deployment.session import Rig
from s2robot.deployment.settings import read_bridge
from s2robot.deployment.trace import EpisodeLog, sampled
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.robots import ROBOTS
from s2robot.evaluation.evaluate import facts, world_changes, world_seen_by
from s2robot.evaluation.records import Journal, summarise, write_records
from s2robot.evaluation.video import write_video

ARM, EMULATED = "arm", "emulated arm"  # where an episode took place
VIDEO = "videos/episode_{:04d}.mp4"
# settings of a rendered scene; and settings that the emulator's own scene determines
_LOOKS: tuple[str, ...] = ("camera_distance", "camera_shift", "lighting", "clutter")
_JUDGED: tuple[str, ...] = ("cube_size", "success_height", "success_hold")


class ArmEvaluationSettings(Positions, at="evaluate", file="evaluate/arm"):
    world: Literal["arm"] = from_yaml()
    videos: bool = from_yaml()
    video_size: int = from_yaml(ge=16)
    resume: bool = from_yaml()


def evaluate_on_arm(cfg: DictConfig, out: Path) -> dict[str, Any]:
    """Evaluate a checkpoint; write the same files to `out` as a simulated evaluation, and return the summary.

    Raises UserError or EnvError for a wrong setting, a failed pre-flight check, an operator's no, or an arm that does not reach
    an episode's start; KeyboardInterrupt if the operator stopped the arm. Finished episodes are on disk.
    """
    if not cfg.live:
        why = "since an evaluation moves the arm (`s2robot deploy` has a dry run)"
        raise UserError(f"live: expected true (`--live`), {why}, got false")
    settings = read(ArmEvaluationSettings, cfg.evaluate)
    check_operator(bridge := read_bridge(cfg))
    if bridge.simulated:
        raise UserError("bridge.simulated: expected false, since a simulated arm has no scene, got true")
    with ExitStack() as stack:
        rig = Rig(cfg, stack)
        evaluation = ArmEvaluation(rig, settings, world_on_arm(cfg), out)  # first: the check takes longer
        rig.check(out / "camera_check.png", live=True)
        return evaluation.run()


def world_on_arm(cfg: DictConfig) -> CubePickConfig:
    """Return the task's settings; for an arm without a simulated model, `env` alone gives positions and episode length."""
    return task_settings(cfg) if cfg.robot.name in ROBOTS else read(CubePickConfig, cfg.env)


class ArmEvaluation:
    """All episodes of one evaluation on a checked rig; `options`: `operator` and `read_keys` of `ArmSession`.

    world: the simulated world, for positions, rate and episode length.
    """

    seed_key = "evaluate.seed"  # of the positions

    def __init__(
        self, rig: Rig, settings: ArmEvaluationSettings, world: CubePickConfig, out: Path, **options: Any
    ):
        self.rig, self.settings, self.out = rig, settings, out
        contract, arm, checkpoint = rig.policy.contract, rig.arm, rig.source.checkpoint
        self.config = world.replace(rate_hz=contract["rate_hz"])
        if arm.bench.name in ROBOTS:
            self.config = world_seen_by(world, contract, rig.policy.image_size, "rate_hz")
        check_world(self.config, None if arm.bridge.simulated else arm.scene)
        lineage = Lineage.of(contract, name=rig.source.name)
        lineage.refuse(settings.positions, rig.source.name, self.seed_key)
        if lineage.note:
            print(f"note: {lineage.note}")
        self.changes = world_changes(contract.get("env_config", {}), self.config)
        self.world = EMULATED if arm.scene else ARM
        # the policy's; None if the policy is on another machine
        self.spec = read_json(Path(checkpoint) / "policy.json")["spec"] if checkpoint else None
        self.log = EpisodeLog(arm.limits, settings.videos)
        self.session = rig.session([self.log], **options)
        self.journal = Journal(out / "episodes.jsonl", self._identity(), settings.resume)
        self.timing: dict[str, float] = defaultdict(float)  # s

    def run(self) -> dict[str, Any]:
        start, episodes = time.monotonic(), self.settings.episodes
        if self.changes:
            print(f"note: this world differs from the demos': {'; '.join(self.changes)}")
        todo = [e for e in range(episodes) if e not in self.journal.records]
        if len(todo) < episodes:
            print(f"{episodes - len(todo)} of {episodes} episodes are already done", flush=True)
        try:
            if todo:
                with self.session.started():
                    for episode in todo:
                        self._episode(episode)
        except BaseException:
            done = sum(e < episodes for e in self.journal.records)
            print(f"{done} of {episodes} episodes are done; hydra.run.dir={self.out} resumes", flush=True)
            raise
        self.timing["wall"] = time.monotonic() - start
        return self.finish(episodes)

    def finish(self, episodes: int) -> dict[str, Any]:
        """Write the records and summary of the first `episodes`, which are finished; return the summary."""
        records = []
        for e in range(episodes):
            exists = (self.out / (video := VIDEO.format(e))).exists()
            records.append({**self.journal.records[e], "video": video if exists else None})
        later = [record for e, record in self.journal.records.items() if e >= episodes]
        write_records([*records, *later], self.journal.path)
        summary = self._summary(records)
        write_json(self.out / "summary.json", summary)
        return summary

    def _episode(self, episode: int) -> None:
        """Run one position, from the operator's consent to the record on disk."""
        session, log, seed = self.session, self.log, self.settings.seed + episode
        operator, actor, start = session.operator, self.rig.policy.actor, time.monotonic()
        session.begin()
        log.begin()
        try:
            placing = session.ready(self.config, seed)
            if operator.person:
                print(f"The policy acts now. {KEYS_HELP}{'; v: void' * operator.voids}", flush=True)
            outcome = session.act(self.config.max_steps)
        except EnvError:
            session.check_stop()
            raise
        ended = operator.t_end or time.monotonic()
        operator.rest()
        session.check_stop()  # a stopped episode is neither a success nor a failure
        self.timing["reset"] += session.began - start
        self.timing["acting"] += ended - session.began
        if outcome.result is not None:
            self.timing["policy"] += float(outcome.result.latencies.sum())
        operator.trouble = outcome.fault
        if outcome.fault:
            operator.failed(outcome.fault)
        success = not outcome.fault and operator.success()
        self._write({
            "episode": episode, "seed": seed, "cube_xy": [round(float(v), 5) for v in placing.cube_xy],
            "cube_yaw": round(float(placing.cube_yaw), 5), "success": success,
            "stage": "held" if success else operator.stage(), "steps": len(log.actions),
            # on an arm, only an operator's key gives the time of the end
            "time_to_success_s": round(ended - session.began, 3) if success and operator.t_end else None,
            "closest_m": None if operator.closest is None else round(operator.closest, 5), "video": None,
            "world": self.world, "speed": self.rig.arm.bridge.speed, "fault": outcome.fault, "holds": log.holds,
            "verdicts": dict(log.verdicts), **sampled(actor),
        })  # fmt: skip

    def _write(self, record: dict[str, Any]) -> None:
        log, settings, number = self.log, self.settings, record["episode"]
        self.journal.append(record, np.stack(log.actions) if log.actions else np.zeros((0, 8), np.float32))
        self._report(record)
        if settings.videos:
            loop = self.session.runtime.loop
            frames = [*log.frames, loop.sensors.observe(self.config.image_size)["images"]]
            path, rate = self.out / VIDEO.format(number), loop.config.policy_hz
            write_video(path, frames, record, rate=rate, height=settings.video_size)

    def _report(self, record: dict[str, Any]) -> None:
        episodes = self.settings.episodes
        done = [r for e, r in self.journal.records.items() if e < episodes]
        ended = f"{'success' if record['success'] else 'no success'}, {record['steps']} steps"
        fault = f", FAULT: {record['fault']}" if record["fault"] else ""
        counts = f"{sum(r['success'] for r in done)} of {len(done)} succeeded"
        where = f"episode {record['episode'] + 1} of {episodes} (seed {record['seed']})"
        print(f"{where}: {ended}{fault}; {counts}", flush=True)

    def _identity(self) -> dict[str, Any]:
        """Return everything that determines an episode, except its number."""
        checkpoint, contract, arm = self.rig.source.checkpoint, self.rig.policy.contract, self.rig.arm
        remote = hashlib.sha256(json.dumps(contract, sort_keys=True).encode()).hexdigest()
        return {
            "world": self.world, "robot.ip": arm.bench.ip if self.world == ARM else None,
            "policy": policy_sha256(Path(checkpoint)) if checkpoint else remote,
            "policy.spec": self.spec,  # a head's execute, ensemble and steps do not change the weights
            "encoder": contract["encoder"]["fingerprint"], "evaluate.seed": self.settings.seed,
            "env": self.config.model_dump(), "bridge": arm.bridge.described(),
        }  # fmt: skip

    def _summary(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **summarise(records),
            **facts(self.config, self.rig.policy.contract, self.changes, self.settings.seed),
            **({"success_rule": "the operator's judgement"} if self.world == ARM else {}),
            "world": self.world, "faults": sum(bool(r["fault"]) for r in records),
            "holds": sum(r["holds"] for r in records), "policy": self.spec or {"url": self.rig.source.url},
            "bridge": self.rig.arm.bridge.described(),
            "timing": {f"{name}_s": round(seconds, 2) for name, seconds in self.timing.items()},
        }  # fmt: skip


def check_world(config: CubePickConfig, scene: Scene | None) -> None:
    """Reject settings that only a simulated world can apply."""
    actual, names, where = CubePickConfig().model_dump(), _LOOKS, "on an arm, where nothing is rendered"
    if scene is not None:
        actual, names, where = scene.world(), _LOOKS + _JUDGED, "as in the running `s2robot emulate`"
    for name in names:
        one_of(f"env.{name}", getattr(config, name), [actual[name]], f" {where}")
