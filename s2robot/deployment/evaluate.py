"""Success of a policy on an arm, over the positions that every simulated evaluation has.

    s2robot evaluate --live evaluate=arm checkpoint=<folder> robot.ip=192.168.1.200
    s2robot evaluate --live evaluate=arm checkpoint=<folder> bridge=emulator     # beside a running `s2robot emulate`

The operator lays each cube where it is asked for, says when the arm may move, and judges; on the emulator nobody has
to. The policy acts in `RealCubePick`, so each rule of the control loop holds. A fault fails its episode: the arm is
stopped, and the operator is asked before the next one. Each record is on disk when its episode ends; the same command
in the same run folder goes on with those that are missing.
"""

import hashlib
import json
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.files import write_json
from s2robot.common.provenance import policy_sha256
from s2robot.common.settings import env_config
from s2robot.deployment.operator import KEYS_HELP, Keys, WatchingOperator, check_operator
from s2robot.deployment.panel import keys
from s2robot.deployment.rig import Rig, Stop
from s2robot.deployment.settings import read_bridge
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.real.control.supervisor import Supervisor
from s2robot.envs.real.people.operator import Judge, TerminalOperator
from s2robot.envs.real.real_cube_pick import RealCubePick
from s2robot.evaluation.journal import Journal, write_records
from s2robot.evaluation.records import read_json, summarise
from s2robot.evaluation.summary import facts, refuse_positions_of_demos, world_changes
from s2robot.evaluation.video import write_video
from s2robot.policies import check_contract

ARM, EMULATED = "arm", "emulated arm"  # where an episode took place
TRIES = 3  # attempts at bringing the arm to the start of an episode
# settings of a scene that is drawn; and what the emulator's own scene decides
_LOOKS: tuple[str, ...] = ("camera_distance", "camera_shift", "lighting", "clutter")
_JUDGED: tuple[str, ...] = ("cube_size", "success_height", "success_hold")


def evaluate_on_arm(cfg: DictConfig, out: Path) -> dict[str, Any]:
    """Evaluate a checkpoint; writes what a simulated evaluation writes to `out`, and returns the summary.

    Raises:
        UserError, EnvError: a wrong setting, something that the pre-flight refuses, an operator who said no, or an
            arm that does not come to the start of an episode; ended episodes are on disk.
        KeyboardInterrupt: the operator stopped the arm; likewise.
    """
    _check_settings(cfg)
    with ExitStack() as stack:
        rig = Rig.connect(cfg, stack)
        rig.check(out / "camera_check.png")
        return ArmEvaluation(rig, out).run()


def _check_settings(cfg: DictConfig) -> None:
    """Refuse what cannot go well, before anything is connected."""
    if not cfg.live:
        raise UserError(
            "live: found false, expected true (`--live`): an evaluation moves the arm; nothing was done "
            "(`s2robot deploy` has a dry run)"
        )
    if cfg.evaluate.episodes < 1:
        raise UserError(f"evaluate.episodes: found {cfg.evaluate.episodes}, expected 1 or more")
    check_operator(read_bridge(cfg.bridge))


class ArmEvaluation:
    """All episodes of one evaluation.

    Args:
        rig: connected and checked.
        out: run folder.
        operator: who is asked; a person on the terminal, or the emulator's, if not given.
        read_keys: calls a function with each key while its context lasts.
    """

    def __init__(
        self,
        rig: Rig,
        out: Path,
        operator: Judge | None = None,
        read_keys: Keys = keys,
    ):
        self.rig, self.cfg, self.out = rig, rig.cfg, out
        contract = rig.policy.contract
        check_contract(contract, cameras=list(self.cfg.env.cameras), rate_hz=self.cfg.env.rate_hz)
        self.config = self._config()
        _check_world(self.config, rig)
        whose = self.cfg.checkpoint or self.cfg.policy.url
        e = self.cfg.evaluate
        refuse_positions_of_demos(contract, range(e.seed, e.seed + e.episodes), whose)
        self.changes = world_changes(contract.get("env_config", {}), self.config)
        self.world = EMULATED if rig.scene else ARM
        self.stop = Stop()
        if operator is None:
            operator = rig.scene.operator() if rig.scene else TerminalOperator()
        self.operator = WatchingOperator(operator, self.stop, read_keys)
        self.journal = Journal(out / "episodes.jsonl", self._settings() if self.cfg.evaluate.resume else None)
        self.timing: dict[str, float] = defaultdict(float)  # s

    def _config(self, **changes: Any) -> CubePickConfig:
        looks = {"cameras": list(self.rig.readers), "image_size": self.rig.policy.image_size}
        return env_config(self.cfg, **looks, **changes)

    def run(self) -> dict[str, Any]:
        """See `evaluate_on_arm`."""
        start, episodes = time.monotonic(), self.cfg.evaluate.episodes
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
        rig = self.rig
        bridge, loop = rig.bench.bridge, rig.loop_config(live=True)
        self.rate = loop.policy_hz
        make = partial(rig.make_driver, gripper=False)
        with self.stop.on_signals(), Supervisor(make, bridge.supervisor_s) as supervisor:
            self.env = RealCubePick(
                rig.driver, rig.readers, self._config(rate_hz=loop.policy_hz), self.operator, loop,
                bridge.watchdog, bridge.safety, supervisor=supervisor,
                home_speed=bridge.home.speed, stopped=self.stop.asked,
            )  # fmt: skip
            self.stop.stop = self.env.loop.request_stop
            try:
                for episode in todo:
                    self._episode(episode)
            finally:
                self.env.close()
                self.operator.rest()
                rig.driver.stop("end of the session")

    # ---------------------------------------------------------------- an episode

    def _episode(self, episode: int) -> None:
        """One position, from the operator's word to the record on disk."""
        operator, seed = self.operator, self.cfg.evaluate.seed + episode
        observation, info = self._begin(seed)
        if self.rig.scene is None:
            print(f"The policy acts. {KEYS_HELP}", flush=True)
        cube = info["cube_asked"]
        frames, actions = [observation["images"]], []
        verdicts: Counter[str] = Counter()
        begun, over, holds, fault = time.monotonic(), False, 0, ""
        while not over:
            asked = time.monotonic()
            try:
                action = self.rig.policy.act(observation)
            except Exception as error:  # whatever a policy raises stops the arm, as in a deployment
                self.env.close()
                fault = f"policy: {type(error).__name__}: {' '.join(str(error).split())}"
                break
            self.timing["policy"] += time.monotonic() - asked
            observation, _, terminated, truncated, info = self.env.step(action)
            over = terminated or truncated
            frames.append(observation["images"])
            actions.append(np.asarray(action, np.float32))
            verdicts[info["verdict"]] += 1
            holds += info["held"]
        ended = operator.t_end or time.monotonic()
        operator.rest()
        if self.stop.asked():  # neither a success nor a failure
            raise KeyboardInterrupt
        if not operator.judged:
            fault = fault or "; ".join(info["reasons"]) or "the control loop has ended"
        self.timing["acting"] += ended - begun
        success = bool(info["is_success"])
        record = {
            "episode": episode, "seed": seed, "cube_xy": [round(float(v), 5) for v in cube[:2]],
            "cube_yaw": round(float(cube[2]), 5), "success": success,
            "stage": "held" if success else operator.stage(), "steps": len(actions),
            # on an arm an end that nobody told is that of the last step
            "time_to_success_s": round(ended - begun, 3) if success and operator.t_end else None,
            "closest_m": None if operator.closest is None else round(operator.closest, 5), "video": None,
            "world": self.world, "speed": self.rig.bench.bridge.speed, "fault": fault, "holds": int(holds),
            "verdicts": dict(verdicts),
        }  # fmt: skip
        operator.trouble = fault
        self.journal.append(record, np.stack(actions) if actions else np.zeros((0, 8), np.float32))
        self._tell(record)
        if self.cfg.evaluate.videos:
            write_video(
                self.out / _video_of(episode), frames, record, rate=self.rate, height=self.cfg.evaluate.video_size
            )  # fmt: skip

    def _begin(self, seed: int) -> tuple[dict, dict]:
        """The first observation of an episode, and its info; what goes wrong before it is tried again."""
        start = time.monotonic()
        for attempt in range(1, TRIES + 1):
            self.operator.begin()
            self.rig.policy.reset()
            try:
                observation, info = self.env.reset(seed=seed)
                break
            except EnvError as error:
                self.operator.rest()
                if self.stop.asked():
                    raise KeyboardInterrupt from None
                if self.operator.refused:
                    raise UserError("the operator said no, expected a yes before the arm moves") from None
                if attempt == TRIES:
                    raise
                print(f"attempt {attempt} of {TRIES} at the start of seed {seed}: {error}", flush=True)
                self.operator.trouble = str(error)
        self.operator.trouble = ""
        self.timing["reset"] += time.monotonic() - start
        return observation, info

    def _tell(self, record: dict[str, Any]) -> None:
        done = [r for e, r in self.journal.records.items() if e < self.cfg.evaluate.episodes]
        outcome = "success" if record["success"] else "no success"
        fault = f", FAULT: {record['fault']}" if record["fault"] else ""
        print(
            f"episode {record['episode'] + 1} of {self.cfg.evaluate.episodes} (seed {record['seed']}): {outcome}, "
            f"{record['steps']} steps{fault}; {sum(r['success'] for r in done)} of {len(done)} succeeded",
            flush=True,
        )

    # ---------------------------------------------------------------- files

    def _filmed(self, record: dict[str, Any]) -> dict[str, Any]:
        name = _video_of(record["episode"])
        return {**record, "video": name if (self.out / name).exists() else None}

    def _settings(self) -> dict[str, Any]:
        """All that decides an episode besides its number."""
        cfg, contract = self.cfg, self.rig.policy.contract
        if cfg.checkpoint:
            policy = policy_sha256(Path(cfg.checkpoint))
        else:
            policy = hashlib.sha256(json.dumps(contract, sort_keys=True).encode()).hexdigest()
        return {
            "world": self.world,
            "robot.ip": self.rig.bench.robot.ip if self.world == ARM else None,
            "policy": policy,
            "encoder": contract["encoder"]["fingerprint"],
            "evaluate.seed": cfg.evaluate.seed,
            "env": asdict(self.config),
            "bridge": self.rig.bench.bridge.described(),
        }

    def _summary(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        cfg, contract = self.cfg, self.rig.policy.contract
        policy = read_json(Path(cfg.checkpoint) / "policy.json")["spec"] if cfg.checkpoint else None
        return {
            **summarise(records),
            **facts(self.config, contract, self.changes, cfg.evaluate.seed),
            **({"success_rule": "the operator's judgement"} if self.world == ARM else {}),
            "world": self.world,
            "faults": sum(bool(r["fault"]) for r in records),
            "holds": sum(r["holds"] for r in records),
            "policy": policy or {"url": cfg.policy.url},
            "bridge": self.rig.bench.bridge.described(),
            "timing": {f"{name}_s": round(seconds, 2) for name, seconds in self.timing.items()},
        }


def _video_of(episode: int) -> str:
    return f"videos/episode_{episode:04d}.mp4"


def _check_world(config: CubePickConfig, rig: Rig) -> None:
    """Refuse settings that only a simulated world could follow."""
    if rig.scene is None:
        there, names, whose = asdict(CubePickConfig()), _LOOKS, "on an arm, where nothing is drawn"
    else:
        there = rig.scene.world()
        names, whose = _LOOKS + _JUDGED, "as the running `s2robot emulate` has it"
    for name in names:
        if getattr(config, name) != there[name]:
            raise UserError(f"env.{name}: found {getattr(config, name)}, expected {there[name]} {whose}")
