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
from s2robot.envs.real.control.subscriber import Subscriber


@dataclass
class Policy(Subscriber):
    act: Callable[[Mapping], np.ndarray]  # observation -> float32 (A,)
    actor: Any  # `Actor` or `RemotePolicy`: plans, and stores an episode's seed and disagreement
    contract: dict[str, Any]
    image_size: ImageSize  # pixels, of the frames that it expects from each camera
    encoder: str | None  # fingerprint of the encoder in use; None = the server's
    reset: Callable[[], None]  # begins an episode
    planner: Any  # `actor` or the `PlanAhead` in front of it: has the `remaining` actions
    absolute: bool = False  # whether its actions are joints, not deltas
    seen: Callable[[Mapping], Mapping] = lambda observation: observation  # loop's -> actor's

    @property
    def rate_hz(self) -> float:
        """Decisions per second at the demos' speed."""
        return float(self.contract["rate_hz"])

    def on_drop(self) -> None:
        self.planner.replan()  # the rest of a plan does not fit without its first action


def make_policy(source: HostSettings, bench: Bench, stack: ExitStack) -> Policy:
    """Return the policy of a checkpoint or a server; `stack` closes it.

    Raises UserError or RemoteError as `load_policy` and `RemotePolicy` do, or if its parts differ from the arm's.
    """
    bridge = bench.bridge
    local_only = {"plan_s": bridge.plan_s, "rehearse.inference_delay": bridge.rehearse["inference_delay"]}
    for key, value in local_only.items():
        if source.url and value:
            raise UserError(f"bridge.{key}: expected none with policy.url, got {value:g}")
    local = None if source.url else _local(source, bridge)
    limit, members = bridge.watchdog.disagreement, local.actor.batch.policy.spec.members if local else 1
    if limit is not None and members == 1:
        expected = "null for a policy of one member, or with policy.url"
        raise UserError(f"bridge.watchdog.disagreement: expected {expected}, got {limit}")
    policy = local or _remote(source, bridge, stack)
    if bench.type is not None and policy.contract["action_frame"] == "parts":
        for key, given in (("simulated", bridge.simulated), ("loop.check_chunks", bridge.loop.check_chunks)):
            if given:
                raise UserError(f"bridge.{key}: expected false with a policy of a LeRobot dataset, got true")
        return policy  # `by_name` checks it once the robot is connected
    if bridge.loop.check_chunks:
        act, planner = policy.act, policy.planner
        policy.act = lambda seen: np.stack([act(seen), *planner.remaining])  # float32 (k, A)
    contract = {"joint_names": bench.joint_names, **policy.contract}
    for key, what in (("action", "actions"), ("proprio", "proprio")):
        parts, own = parts_of(contract, key), bench.parts(key)
        if not same_parts(parts, own):
            raise UserError(f"policy: {what}: expected the arm's {words(own)}, got {words(parts)}")
    return policy


def by_name(policy: Policy, bench: Bench, arm: Any) -> Policy:
    """Adapt a policy trained on a LeRobot dataset to the control loop: match its values to the robot `arm` by name and unit.

    Values in another order are reordered. Raises UserError for other names, or actions that are not absolute targets.
    """
    indices, order = dict[str, list[int]](), list(arm.names)
    for key in ("proprio", "action"):
        parts = parts_of(policy.contract, key)
        names = [name.removesuffix(".pos") for name in number_names(parts)]
        if sorted(names) != sorted(order):
            raise UserError(f"policy: {key}: expected the robot's {', '.join(order)}, got {', '.join(names)}")
        if wrong := [part for part in parts if part.kind != "absolute"]:
            raise UserError(f"policy: {key}: expected absolute values, got {words(wrong)}")
        indices[key] = [names.index(name) for name in order]

    def seen(observation: Mapping) -> Mapping:
        proprio = np.empty(len(order), np.float32)
        proprio[indices["proprio"]] = arm.to_robot(observation["proprio"])
        return {**observation, "proprio": proprio}

    def act(observation: Mapping) -> np.ndarray:
        action = np.asarray(policy.act(seen(observation)), np.float64)
        return arm.to_arm(action[indices["action"]])

    about: dict[str, Any] = {f"{key}_parts": plain(bench.parts(key)) for key in indices}
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

    def delayed(*args: Any) -> np.ndarray:
        time.sleep(delay)
        return plan(*args)

    if delay:
        batch.plan = delayed
    planner: Any = actor if bridge.plan_s is None else _ahead(actor, contract, bridge)

    def act(observation: Mapping) -> np.ndarray:
        action = planner.act(observation)
        if limit is not None and actor.disagreement > limit:
            planner.replan()  # the arm holds; the next plan starts from the observation at that time
        return action

    def reset() -> None:
        if planner is not actor:
            planner.reset()
        actor.reset(task=source.instruction)

    return Policy(act, actor, contract, image_size_of(contract, encoder), encoder.fingerprint, reset, planner)


def _ahead(actor: Any, contract: Mapping[str, Any], bridge: Bridge) -> PlanAhead:
    """Return an actor that plans ahead by `bridge.plan_s`. Raises UserError if the policy cannot do so, or its chunk is too short."""
    rate_hz, plan_s = bridge.speed * float(contract["rate_hz"]), bridge.plan_s or 0.0
    policy, delay = actor.batch.policy, math.ceil(round(plan_s * rate_hz, 6))
    spec = policy.spec
    trained = (contract.get("training") or {}).get("longest_target", spec.chunk)  # steps of a chunk
    limit = min(trained - spec.execute, trained // 2)  # actions left in the previous chunk
    for fits, expected in (
        (policy.network.head.continues, f"null with policy.head {spec.head.kind}"),
        (spec.context == 1 and spec.ensemble is None, "null for a policy that sees every step"),
        (delay <= limit, f"<= {limit / rate_hz:.3g} with {trained} trained steps and policy.execute={spec.execute}"),
    ):  # fmt: skip
        if not fits:
            raise UserError(f"bridge.plan_s: expected {expected}, got {plan_s:g}")
    plan = lambda *args: actor.plan_chunk(*args)[:trained]  # noqa: E731
    return PlanAhead(plan, max(spec.execute, delay), delay, 2 / rate_hz)


def _remote(source: HostSettings, bridge: Bridge, stack: ExitStack) -> Policy:
    from s2robot.serving.remote import RemoteError, RemotePolicy
    from s2robot.serving.token import read_token

    token = read_token(source.token_file)
    remote = RemotePolicy(str(source.url), token, source.deadline_s, source.connect_s, source.ca_file)
    stack.callback(remote.close)
    hold = bridge.watchdog.policy_hold + 1.5 / (bridge.speed * float(remote.contract["rate_hz"]))

    def act(observation: Mapping) -> np.ndarray:
        """Act; delay an exception until the loop holds, so that the arm is at rest before the fault."""
        begin = time.monotonic()
        try:
            return remote.act(observation)
        except RemoteError:
            time.sleep(max(0.0, begin + hold + 0.2 - time.monotonic()))
            raise

    reset = lambda: remote.reset(task=source.instruction)  # noqa: E731
    return Policy(act, remote, remote.contract, remote.image_size, None, reset, remote)
