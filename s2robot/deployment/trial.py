"""The attempts of `s2robot trial` on an arm: as in `s2robot evaluate evaluate=arm`, with two policies alternately.

Nothing printed between two attempts reveals which policy acts.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from s2robot.config import plain
from s2robot.core.errors import UserError, one_of
from s2robot.deployment.evaluate import ArmEvaluation, ArmEvaluationSettings, world_on_arm
from s2robot.deployment.operator import check_operator
from s2robot.deployment.session import Rig
from s2robot.deployment.settings import HostSettings, read_bridge
from s2robot.envs.real.operator.prompts import TrialOperator, Void


class BlindEvaluation(ArmEvaluation):
    """One policy's attempts; a fault also affects `other`, since both share the arm."""

    other: "BlindEvaluation"
    seed_key = "seed"

    def attempt(self, pair: int) -> None:
        """Try a pair's position, and store the outcome unless the attempt is void. Raises as `ArmEvaluation.run` does."""
        runtime, other = self.session.runtime, self.other.session.runtime
        if other.fault:  # the operator must clear it before the arm moves for either policy
            runtime.loop.watchdog.fault(runtime.clock.now(), "; ".join(other.fault))
        self.session.began = 0.0
        try:
            with self.session.started():
                runtime.stop_for_operator("the operator is at the table")
                self._episode(pair)
        except Void:
            print("void: the attempt will be repeated", flush=True)
        finally:
            if self.session.began:  # the operator has agreed
                other.clear()
            self.other.session.operator.trouble = self.session.operator.trouble

    def _report(self, record: dict[str, Any]) -> None:
        """Print the outcome without counts, which would reveal the policy."""
        print(f"stored: {'success' if record['success'] else 'no success'}", flush=True)


def on_arm(
    cfg: DictConfig, settings: Any, stack: ExitStack, folders: Sequence[Path], operator: TrialOperator | None = None,
    **options: Any,
) -> list[BlindEvaluation]:  # fmt: skip
    """Connect the arm, check both policies, return the attempts of a and b; ``stack`` closes all. Raises as `evaluate_on_arm`.

    Args:
        settings: `comparison.trial.TrialSettings`.
        operator: answers instead of a person at a terminal. options: `read_keys` of `ArmSession`.
    """
    bridge, world, keys = read_bridge(cfg), world_on_arm(cfg), ("seed", "videos", "video_size")
    if not settings.live:
        raise UserError("live: expected true (`--live`), since a trial moves the arm, got false")
    shared = {key: getattr(settings, key) for key in keys}
    evaluation = ArmEvaluationSettings(episodes=settings.pairs, resume=True, **shared)
    for stage in world.stages if settings.stages else ():
        one_of("stages", stage, settings.stages)
    if settings.judge == "scene" and (bridge.simulated or not bridge.emulated):
        raise UserError("judge: expected person, except with bridge=emulator, got scene")
    if operator is None:
        check_operator(bridge, required=settings.judge == "person")
    rigs = list[Rig]()
    for letter, name in (("a", settings.a), ("b", settings.b)):
        where = "url" if name.startswith(("ws://", "wss://")) else "checkpoint"
        source = HostSettings(**{**plain(cfg.policy), "url": None, where: name})
        rigs.append(Rig(cfg, stack, source, *rigs))
        print(f"policy {letter}: {name}")
        rigs[-1].check(Path(cfg.run_dir) / f"camera_check_{letter}.png", live=True)
    if operator is None and settings.judge == "person":
        operator = TrialOperator()
    if operator is not None and (scene := rigs[0].arm.scene):
        operator.scene = scene.operator()
    attempts = [BlindEvaluation(rig, evaluation, world, folder, operator=operator, **options)
                for rig, folder in zip(rigs, folders, strict=True)]  # fmt: skip
    attempts[0].other, attempts[1].other = attempts[1], attempts[0]
    return attempts
