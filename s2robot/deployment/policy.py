"""The policy of a deployment: a checkpoint in this process, or a server's."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from s2robot.core.errors import UserError
from s2robot.core.parts import number_names, parts_of, plain, same_parts, words
from s2robot.deployment.ahead import PlanAhead
from s2robot.deployment.settings import Bench, Bridge, HostSettings
from s2robot.envs.cube_config import ACTION_FRAME
from s2robot.envs.frames import ImageSize


@dataclass
class Policy:
    act: Callable[[Mapping], np.ndarray]  # observation -> float32 (A,)
    actor: Any  # `Actor` or `RemotePolicy`: plans, is reset, and stores an episode's seed and disagreement
    contract: dict[str, Any]
    image_size: ImageSize  # pixels, of the frames that it expects of each camera
    encoder: str | None  # fingerprint of the encoder that computes; None = the server's
    forget: Callable[[], None]  # begins an episode
    planner: Any  # `actor` or the `PlanAhead` in front of it: holds the actions that `remain`
    absolute: bool = False  # whether its actions are joints, not deltas
    seen: Callable[[Mapping], Mapping] = lambda observation: observation  # ours -> the actor's

    @property
    def rate_hz(self) -> float:
        """Its decisions a second at the demos' speed."""
        return float(self.contract["rate_hz"])


def make_policy(source: HostSettings, bench: Bench, stack: ExitStack) -> Policy:
    """Return the policy of a checkpoint or a server; it is closed with `stack`.

    UserError, PolicyError, RemoteError: as `load_policy` and `RemotePolicy`, or one of other parts than the arm's.
    """
    bridge = bench.bridge
    here = {"plan_s": bridge.plan_s, "rehearse.inference_delay": bridge.rehearse["inference_delay"]}
    for key, value in here.items():
        if source.url and value:
            raise UserError(f"bridge.{key}: expected none with policy.url, got {value:g}")
    local = None if source.url else _local(source, bridge)
    limit, members = bridge.watchdog.disagreement, local.actor.batch.policy.spec.members if local else 1
    if limit is not None and members == 1:
        expected = "null for a policy of one member, or with policy.url"
        raise UserError(f"bridge.watchdog.disagreement: expected {expected}, got {limit}")
    policy = local or _remote(source, bridge, stack)
    if bench.type is not None and policy.contract["action_frame"] == "parts":
        if bridge.loop.check_chunks:
            raise UserError(
                "bridge.loop.check_chunks: expected false with a policy of absolute actions, got true"
            )
        return policy  # `by_name` checks it, once the robot is connected
    if bridge.loop.check_chunks:
        act, planner = policy.act, policy.planner
        policy.act = lambda seen: np.stack([act(seen), *planner.remaining])  # float32 (k, A)
    contract = {"joint_names": bench.joint_names, **policy.contract}
    for key, what in (("action", "actions"), ("proprio", "proprio")):
        given, own = parts_of(contract, key), bench.parts(key)
        if not same_parts(given, own):
            raise UserError(f"policy: {what}: the policy's are {words(given)}, the arm's {words(own)}")
    return policy


def by_name(policy: Policy, bench: Bench, arm: Any) -> Policy:
    """Return a policy of a LeRobot dataset for our loop: its numbers are those of the robot `arm` by name, in the robot's units.

    Raises UserError: other names, or actions that are no absolute targets. Another order is put right.
    """
    orders, own = dict[str, list[int]](), list(arm.names)
    for key in ("proprio", "action"):
        parts = parts_of(policy.contract, key)
        names = [name.removesuffix(".pos") for name in number_names(parts)]
        if sorted(names) != sorted(own):
            raise UserError(f"policy: {key}: expected the robot's {', '.join(own)}, got {', '.join(names)}")
        if wrong := [part for part in parts if part.kind != "absolute"]:
            raise UserError(f"policy: {key}: expected absolute numbers, got {words(wrong)}")
        orders[key] = [names.index(name) for name in own]

    def seen(observation: Mapping) -> Mapping:
        proprio = np.empty(len(own), np.float32)
        proprio[orders["proprio"]] = arm.to_robot(observation["proprio"])
        return {**observation, "proprio": proprio}

    def act(observation: Mapping) -> np.ndarray:
        action = np.asarray(policy.act(seen(observation)), np.float64)
        return arm.to_arm(action[orders["action"]])

    about: dict[str, Any] = {f"{key}_parts": plain(bench.parts(key)) for key in orders}
    about |= {"joint_names": list(bench.joint_names), "action_frame": ACTION_FRAME}
    return replace(policy, act=act, contract={**policy.contract, **about}, absolute=True, seen=seen)


def _local(source: HostSettings, bridge: Bridge) -> Policy:
    import torch

    from s2robot.loading import image_size_of, load_policy

    if source.threads:
        torch.set_num_threads(source.threads)
    actor, encoder, contract = load_policy(str(source.checkpoint), source.device, source.weights)
    limit, delay = bridge.watchdog.disagreement, bridge.rehearse["inference_delay"]
    batch: Any = actor.batch
    plan = batch.plan

    def late(*given: Any) -> np.ndarray:
        time.sleep(delay)
        return plan(*given)

    if delay:
        batch.plan = late
    planner: Any = actor
    if bridge.plan_s is not None:
        planner = _ahead(actor, bridge.plan_s, bridge.speed * float(contract["rate_hz"]))

    def act(observation: Mapping) -> np.ndarray:
        action = planner.act(observation)
        if limit is not None and actor.disagreement > limit:
            planner.replan()  # the arm holds, and what comes next is a plan of what is seen then
        return action

    def forget() -> None:
        if planner is not actor:
            planner.reset()
        actor.reset()

    size = image_size_of(contract, encoder)
    return Policy(act, actor, contract, size, encoder.fingerprint, forget, planner)


def _ahead(actor: Any, plan_s: float, rate_hz: float) -> PlanAhead:
    """Return what acts by plans that take so long. UserError: a policy that cannot plan ahead, or too short a chunk."""
    policy, delay = actor.batch.policy, math.ceil(round(plan_s * rate_hz, 6))
    spec = policy.spec
    most = min(spec.chunk - spec.execute, spec.chunk // 2)  # the chunk before has as many left
    for fits, expected in (
        (policy.network.head.continues, f"null with policy.head {spec.head.kind}"),
        (spec.context == 1 and spec.ensemble is None, "null for a policy that sees every step"),
        (delay <= most, f"<= {most / rate_hz:.3g} with policy.chunk={spec.chunk} and policy.execute={spec.execute}"),
    ):  # fmt: skip
        if not fits:
            raise UserError(f"bridge.plan_s: expected {expected}, got {plan_s:g}")
    return PlanAhead(actor.plan_chunk, max(spec.execute, delay), delay, 2 / rate_hz)


def _remote(source: HostSettings, bridge: Bridge, stack: ExitStack) -> Policy:
    from s2robot.serving.remote import RemoteError, RemotePolicy
    from s2robot.serving.token import read_token

    token = read_token(source.token_file)
    remote = RemotePolicy(str(source.url), token, source.deadline_s, source.connect_s, source.ca_file)
    stack.callback(remote.close)
    hold = bridge.watchdog.policy_hold + 1.5 / (bridge.speed * float(remote.contract["rate_hz"]))

    def act(observation: Mapping) -> np.ndarray:
        """A failure comes late enough that the loop holds first: the arm stands before the fault."""
        begin = time.monotonic()
        try:
            return remote.act(observation)
        except RemoteError:
            time.sleep(max(0.0, begin + hold + 0.2 - time.monotonic()))
            raise

    return Policy(act, remote, remote.contract, remote.image_size, None, remote.reset, remote)
