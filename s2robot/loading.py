"""Load a trained policy with its encoder, ready to act; needs no simulator.

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
from s2robot.envs.frames import ImageSize, as_image_size
from s2robot.golden import check_trace
from s2robot.policies import Actor, ChunkPolicy, PolicySpec, check_contract, load_checkpoint, load_tuned

Place = str | Path


class _Encoder(Stored):
    settings: dict[str, Any]
    features_dtype: Literal["float16", "float32"]
    frames: dict[str, tuple[int, int]] = {}


class _Acts(Stored):
    """What acting requires of a contract beside what every one has."""

    encoder: _Encoder
    camera_geometry: dict[str, dict[str, Any]] | None = None


def device_of(name: str) -> torch.device:
    """Return the device of a name; `auto` is the GPU if there is one. UserError: no such device here."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = None
    with suppress(RuntimeError, TypeError):
        device = torch.device(("cuda" if gpus else "cpu") if name == "auto" else name)
    if device is None or (device.type == "cuda" and (device.index or 0) >= gpus):
        known = "auto, cpu, cuda or cuda:0, cuda:1, ..."
        raise UserError(f"device: expected {known}, of the {gpus} GPUs that torch finds here, got {name!r}")
    return device


def load_networks(
    checkpoint: Place, device: torch.device, weights: Place | None = None, task_vectors: Place | None = None
) -> tuple[ChunkPolicy, S2Encoder, dict[str, Any]]:
    """Return the policy, the encoder and the contract of a checkpoint. ``weights``: the encoder's file, if it has moved.
    ``task_vectors``: of texts that the policy is to act on besides those of its demos.
    PolicyError, UserError: a damaged checkpoint, missing weights, or another encoder than the policy's, or one
    that gives other actions here than after training."""
    policy, contract = load_checkpoint(checkpoint, device)
    if task_vectors:
        policy.add_tasks(task_vectors)
    settings = dict(read(_Acts, contract, f"{checkpoint}: ").encoder.settings)
    if weights:
        settings["checkpoint"] = str(weights)
    # an encoder that was trained whole needs no file: the checkpoint holds its weights
    elif not settings.get("trained") and (place := settings.get("checkpoint")) and not Path(place).is_file():
        hint = "if it has moved, encoder.checkpoint=<file>, or weights= in Python"
        raise UserError(f"{place}: expected the encoder's weights, got no such file; {hint}")
    built = build_encoder(settings, load_tuned(checkpoint)).to(device)
    place = settings.get("checkpoint")  # two files with one name are easily confused
    name = f"{built.name} ({place})" if place else built.name
    check_contract(contract, encoder={"name": name, "fingerprint": built.fingerprint})
    check_trace(Path(checkpoint), policy, built, contract)
    return policy, built, contract


def image_size_of(contract: Mapping[str, Any], encoder: S2Encoder) -> ImageSize:
    """Return the frame size that a policy expects: one side for all, or (H, W) of each camera if not all are square."""
    shapes = contract["encoder"].get("frames") or {}
    side = (encoder.image_size, encoder.image_size)
    return as_image_size({name: tuple(shapes.get(name, side)) for name in contract["cameras"]})


class Policy(NamedTuple):
    """A checkpoint that acts for one robot."""

    actor: Actor
    encoder: S2Encoder
    contract: dict[str, Any]

    @property
    def spec(self) -> PolicySpec:
        """The networks' spec: cameras in order, parts of actions and states, actions per plan."""
        return self.actor.batch.policy.spec

    @property
    def image_size(self) -> ImageSize:
        return image_size_of(self.contract, self.encoder)

    @property
    def seed(self) -> int:
        """Seed of everything that a head samples in this episode."""
        return self.actor.seed

    def reset(self, seed: int | None = None, task: str | None = None) -> None:
        """Begin an episode, whose heads sample from the seed, None for a new one."""
        self.actor.reset(seed, task)

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the next action, float32 (A,), from {"images": {camera: uint8 (H, W, 3)}, "proprio": (P,)}; see `Actor.act`."""
        return self.actor.act(observation)

    def plan(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the next actions that need no further observation, float32 (k, A)."""
        return self.actor.plan(observation)


def load_policy(
    checkpoint: Place, device: str = "auto", weights: Place | None = None, task_vectors: Place | None = None
) -> Policy:
    """Load a checkpoint that acts for one robot. Arguments and errors as :func:`load_networks`, the device by name."""
    policy, encoder, contract = load_networks(checkpoint, device_of(device), weights, task_vectors)
    dtype = contract["encoder"]["features_dtype"]
    geometry = contract.get("camera_geometry") or {}
    sizes = {name: camera["size"] for name, camera in geometry.items() if "size" in camera}
    sizes |= contract["encoder"].get("frames") or {}
    # rounded as the training saw them, out of the cache
    encode = lambda frames: as_stored(encoder.encode_cameras(frames), dtype)  # noqa: E731
    return Policy(Actor(policy, encode, sizes, encoder.map_of), encoder, contract)
