"""The policy of a deployment: a checkpoint in this process, or a server's."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from s2robot.core.errors import UserError
from s2robot.deployment.arm import JOINT_NAMES
from s2robot.deployment.preflight import check_parts
from s2robot.deployment.settings import Bridge, PolicySettings
from s2robot.envs.frames import ImageSize


@dataclass
class Policy:
    """The policy that acts."""

    act: Callable[[Mapping], np.ndarray]  # observation -> float32 (8,)
    plan: Callable[[Mapping], np.ndarray]  # observation -> float32 (k, 8), for measuring
    reset: Callable[[], None]
    contract: dict[str, Any]
    image_size: ImageSize  # pixels, of the frames that it expects of each camera
    encoder: str | None  # fingerprint of the encoder that computes; None = the server's
    seed: Callable[[], int]  # of all that its head draws in this episode
    disagreement: Callable[[], float] = lambda: 0.0  # of its members about the newest plan, rad
    mean_disagreement: Callable[[], float | None] = lambda: (
        None
    )  # over the plans of an episode; None = not known

    @property
    def rate_hz(self) -> float:
        """Its decisions a second at the demos' speed."""
        return float(self.contract["rate_hz"])


def make_policy(source: PolicySettings, bridge: Bridge, stack: ExitStack) -> Policy:
    """Return the policy of a checkpoint or a server; it is closed with `stack`.

    Raises:
        UserError, PolicyError, RemoteError: as `load_policy` and `RemotePolicy`, or a policy whose actions or states
            have other parts than the arm's joints and gripper.
    """
    policy = _remote(source, bridge, stack) if source.host.url is not None else _local(source, bridge)
    for finding in check_parts(policy.contract, len(JOINT_NAMES)):
        raise UserError(f"policy: {finding.check}: {finding.text}")
    return policy


def _local(source: PolicySettings, bridge: Bridge) -> Policy:
    import torch

    from s2robot.loading import image_size_of, load_policy

    assert source.checkpoint is not None
    if source.host.threads:
        torch.set_num_threads(source.host.threads)
    actor, encoder, contract = load_policy(source.checkpoint, source.host.device, source.weights)
    members, limit = actor.batch.policy.spec.members, bridge.watchdog.disagreement
    if limit is not None and members == 1:
        raise UserError(
            f"bridge.watchdog.disagreement: expected null for a policy of one member, got {limit}"
        )

    def act(observation: Mapping) -> np.ndarray:
        action = actor.act(observation)
        if limit is not None and actor.disagreement > limit:
            actor.replan()  # the arm holds, and what comes next is a plan of what is seen then
        return action

    return Policy(
        act, actor.plan, actor.reset, contract, image_size_of(contract, encoder), encoder.fingerprint,
        lambda: actor.seed, lambda: actor.disagreement, lambda: actor.mean_disagreement,
    )  # fmt: skip


def _remote(source: PolicySettings, bridge: Bridge, stack: ExitStack) -> Policy:
    from s2robot.serving.remote import RemotePolicy
    from s2robot.serving.token import read_token

    host = source.host
    assert host.url is not None
    if (limit := bridge.watchdog.disagreement) is not None:
        raise UserError(f"bridge.watchdog.disagreement: expected null with policy.url, got {limit}")
    remote = RemotePolicy(
        host.url, read_token(host.token_file), host.deadline_s, host.connect_s, host.ca_file
    )
    stack.callback(remote.close)
    hold = bridge.watchdog.policy_hold + 1.5 / (bridge.speed * float(remote.contract["rate_hz"]))
    act = partial(_hold_first, remote.act, hold)
    return Policy(
        act, remote.plan, remote.reset, remote.contract, remote.image_size, None, lambda: remote.seed
    )


def _hold_first(act: Callable[[Mapping], np.ndarray], hold_s: float, observation: Mapping) -> np.ndarray:
    """`act`, whose failures come late enough that the loop holds first: the arm stands before the fault."""
    from s2robot.serving.remote import RemoteError

    begin = time.monotonic()
    try:
        return act(observation)
    except RemoteError:
        time.sleep(max(0.0, begin + hold_s + 0.2 - time.monotonic()))
        raise
