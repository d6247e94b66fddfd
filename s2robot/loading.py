"""Load a trained policy with its encoder for acting, without a simulator.

policy = load_policy("runs/run/<date>/checkpoint")                    # also s2robot.load_policy
policy.reset()
policy.act({"images": {"hand": frame, ...}, "proprio": proprio})      # float32 (8,)

actor, encoder, contract = policy                                     # its parts
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from s2robot.core.errors import UserError
from s2robot.core.settings import Stored, read
from s2robot.encoders.build import build_encoder
from s2robot.encoders.cache import as_stored
from s2robot.encoders.encoder import S2Encoder
from s2robot.envs.frames import ImageSize, as_image_size, sizes_of
from s2robot.golden import check_trace
from s2robot.policies import Actor, ChunkPolicy, PolicySpec, check_contract, load_checkpoint, load_tuned

File = str | Path  # path of a file or folder


class _Encoder(Stored):
    settings: dict[str, Any]
    features_dtype: Literal["float16", "float32"]
    frames: dict[str, tuple[int, int]] = {}


class _Acts(Stored):
    """Contract fields required for acting, in addition to the common ones."""

    encoder: _Encoder


def device_of(name: str, key: str = "device") -> torch.device:
    """Return the device with a name; `auto` is the GPU if there is one. UserError if this machine has no such device."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = None
    with suppress(RuntimeError, TypeError):
        device = torch.device(("cuda" if gpus else "cpu") if name == "auto" else name)
    if device is None or (device.type == "cuda" and (device.index or 0) >= gpus):
        known = "auto, cpu, cuda or cuda:0, cuda:1, ..."
        raise UserError(f"{key}: expected {known} (torch finds {gpus} GPUs here), got {name!r}")
    return device


def load_networks(
    checkpoint: File, device: torch.device, weights: File | None = None, task_vectors: File | None = None
) -> tuple[ChunkPolicy, S2Encoder, dict[str, Any]]:
    """Return the policy, the encoder and the contract of a checkpoint. ``weights``: the encoder's file, if it has moved.
    ``task_vectors``: vectors of instructions that are not in the policy's demos. UserError if the checkpoint is damaged,
    weights are missing, the encoder is not the policy's, or the outputs differ from those after training."""
    policy, contract = load_checkpoint(checkpoint, device)
    if task_vectors:
        policy.add_tasks(task_vectors)
    settings = dict(read(_Acts, contract, f"{checkpoint}/policy.json: contract: ").encoder.settings)
    if weights:
        settings["checkpoint"] = str(weights)
    # a fully trained encoder needs no file, because the checkpoint holds its weights
    elif not settings.get("trained") and (file := settings.get("checkpoint")) and not Path(file).is_file():
        hint = "if it has moved, encoder.checkpoint=<file>, or weights= in Python"
        raise UserError(f"{file}: the encoder's weights were not found; {hint}")
    built = build_encoder(settings, load_tuned(checkpoint)).to(device)
    file = settings.get("checkpoint")  # distinguishes two encoders with the same name
    name = f"{built.name} ({file})" if file else built.name
    check_contract(contract, encoder={"name": name, "fingerprint": built.fingerprint})
    check_trace(Path(checkpoint), policy, built, contract)
    return policy, built, contract


def image_size_of(contract: Mapping[str, Any], encoder: S2Encoder) -> ImageSize:
    """Return the frame size that a policy expects: one side length, or (H, W) of each camera if not all are square."""
    shapes = contract["encoder"].get("frames") or {}
    return as_image_size({n: tuple(shapes.get(n, (encoder.image_size,) * 2)) for n in contract["cameras"]})


class Policy(NamedTuple):
    """A checkpoint that acts for one robot."""

    actor: Actor
    encoder: S2Encoder
    contract: dict[str, Any]

    @property
    def spec(self) -> PolicySpec:
        """The network spec: cameras in order, parts of actions and states, actions per chunk."""
        return self.actor.batch.policy.spec

    @property
    def image_size(self) -> ImageSize:
        return image_size_of(self.contract, self.encoder)

    def reset(self, seed: int | None = None, task: str | None = None) -> None:
        """Begin an episode; the heads sample with ``seed``, or with a new one if None."""
        self.actor.reset(seed, task)

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the next action, float32 (A,), from {"images": {camera: uint8 (H, W, 3)}, "proprio": (P,)}; see `Actor.act`."""
        return self.actor.act(observation)

    def plan(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the next actions, until a new observation is needed, float32 (k, A)."""
        return self.actor.plan(observation)


def load_policy(
    checkpoint: File, device: str = "auto", weights: File | None = None, task_vectors: File | None = None
) -> Policy:
    """Load a checkpoint that acts for one robot. Arguments and errors: see :func:`load_networks`; ``device`` is a name."""
    policy, encoder, contract = load_networks(checkpoint, device_of(device), weights, task_vectors)
    dtype = contract["encoder"]["features_dtype"]
    sizes = sizes_of(image_size_of(contract, encoder), contract["cameras"])
    # rounded as in the feature cache, which training reads
    encode = lambda frames: as_stored(encoder.encode_cameras(frames), dtype)  # noqa: E731
    return Policy(Actor(policy, encode, sizes, encoder.map_of), encoder, contract)
