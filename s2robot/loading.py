"""A trained policy with the encoder that it was trained on, ready to act.

    policy = load_policy("runs/run/<date>/checkpoint")                    # of `s2robot` itself, too
    policy.reset()
    policy.act({"images": {"hand": frame, ...}, "proprio": proprio})      # float32 (8,)

    actor, encoder, contract = policy                                     # what it is made of

Needs no simulator: this is what acts on an arm, or on a server for one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from s2robot.common.errors import UserError
from s2robot.encoders.build import build_encoder
from s2robot.encoders.cache import DTYPES, as_stored
from s2robot.encoders.encoder import S2Encoder
from s2robot.envs.frames import ImageSize, as_image_size
from s2robot.policies import Actor, ChunkPolicy, PolicySpec, check_contract, load_checkpoint, load_tuned


def device_of(name: str) -> torch.device:
    """`auto` is the GPU if there is one; UserError for a name that torch does not know and for a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"device: found {name!r}, expected auto, cpu, cuda or cuda:0, cuda:1, ...") from None
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise UserError(
            f"device: found {name}, torch {torch.__version__} finds {gpus} GPUs here; auto or cpu will do"
        )
    return device


def load_networks(
    checkpoint: str | Path, device: torch.device, weights: str | Path | None = None
) -> tuple[ChunkPolicy, S2Encoder, dict[str, Any]]:
    """A checkpoint's policy, its encoder built again, and its contract.

    Args:
        checkpoint: the folder that `s2robot train` wrote.
        device: where both compute.
        weights: the encoder's weights file, if it lies elsewhere than at training time.

    Raises:
        PolicyError, UserError: a damaged checkpoint, missing weights, or another encoder than the policy's.
    """
    policy, contract = load_checkpoint(checkpoint, device)
    if not isinstance(contract["encoder"].get("settings"), dict):
        raise UserError(
            f"{checkpoint}: key 'encoder.settings' is missing: it does not say how its encoder is built"
        )
    geometry, frames = contract.get("camera_geometry"), contract["encoder"].get("frames")
    for key, found, good in (
        ("encoder.features_dtype", dtype := contract["encoder"].get("features_dtype"), dtype in list(DTYPES)),
        ("camera_geometry", geometry, geometry is None or _are_tables(geometry)),
        ("encoder.frames", frames, frames is None or isinstance(frames, dict)),
    ):
        if not good:
            raise UserError(
                f"{checkpoint}: key '{key}': found {found!r}, expected what `s2robot train` writes"
            )
    settings = dict(contract["encoder"]["settings"])
    if weights:
        settings["checkpoint"] = str(weights)
    elif (place := settings.get("checkpoint")) and not Path(place).is_file():
        raise UserError(
            f"{place}: no such file, expected the encoder that the policy of {checkpoint} was trained on; if it lies "
            "elsewhere now: encoder.checkpoint=<file>, or weights= in Python"
        )
    encoder = build_encoder(settings, load_tuned(checkpoint)).to(device)
    place = settings.get("checkpoint")  # two files of one name are what is mixed up most
    given = f"{encoder.name} ({place})" if place else encoder.name
    check_contract(contract, encoder={"name": given, "fingerprint": encoder.fingerprint})
    return policy, encoder, contract


def _are_tables(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(table, dict) for table in found.values())


def image_size_of(contract: Mapping[str, Any], encoder: S2Encoder) -> ImageSize:
    """The frames that a policy wants: one side for all, or (H, W) of each camera where they are not all squares.

    Square ones are those that its encoder reads without resizing; of others what counts is their shape.
    """
    wide = contract["encoder"].get("frames") or {}
    side = (encoder.image_size, encoder.image_size)
    return as_image_size({name: tuple(wide.get(name, side)) for name in contract["cameras"]})


class Policy(NamedTuple):
    """A checkpoint that acts for one robot."""

    actor: Actor
    encoder: S2Encoder
    contract: dict[str, Any]

    @property
    def spec(self) -> PolicySpec:
        """Of its networks: cameras in order, what an action and a state hold, how many actions a plan."""
        return self.actor.batch.policy.spec

    @property
    def image_size(self) -> ImageSize:
        """Of the frames that it wants, see `image_size_of`."""
        return image_size_of(self.contract, self.encoder)

    @property
    def seed(self) -> int:
        """Of all that a head draws in this episode."""
        return self.actor.seed

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode; the seed is that of all that a head draws in it, None for a new one."""
        self.actor.reset(seed)

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Next action, float32 (A,), from {"images": {camera: uint8 (H, W, 3)}, "proprio": (P,)}; see `Actor.act`."""
        return self.actor.act(observation)

    def plan(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The next actions that need no further observation, float32 (k, A)."""
        return self.actor.plan(observation)


def load_policy(checkpoint: str | Path, device: str = "auto", weights: str | Path | None = None) -> Policy:
    """A checkpoint, ready to act for one robot.

    Arguments and errors as :func:`load_networks`; the device by name, `auto` for the GPU if there is one.
    """
    policy, encoder, contract = load_networks(checkpoint, device_of(device), weights)
    dtype = contract["encoder"]["features_dtype"]
    geometry = contract.get("camera_geometry") or {}
    sizes = {name: camera["size"] for name, camera in geometry.items() if "size" in camera}
    sizes |= contract["encoder"].get("frames") or {}
    # rounded as the training saw them, out of the cache
    actor = Actor(policy, lambda images: as_stored(encoder.encode(images), dtype), sizes, encoder.map_of)
    return Policy(actor, encoder, contract)
