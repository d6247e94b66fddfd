"""A trained policy with the encoder that it was trained on, ready to act.

    actor, encoder, contract = load_actor("runs/run/<date>/checkpoint")
    actor.reset()
    actor.act({"images": {"hand": frame, ...}, "proprio": proprio})       # float32 (8,)

Needs no simulator: this is what acts on an arm, or on a server for one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from s2robot.common.errors import UserError
from s2robot.encoders.build import build_encoder
from s2robot.encoders.cache import as_stored
from s2robot.encoders.encoder import S2Encoder
from s2robot.envs.frames import ImageSize, as_image_size
from s2robot.policies import Actor, ChunkPolicy, check_contract, load_checkpoint


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


def load_policy(
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
    settings = dict(contract["encoder"]["settings"])
    if weights:
        settings["checkpoint"] = str(weights)
    elif (place := settings.get("checkpoint")) and not Path(place).is_file():
        raise UserError(
            f"{place}: no such file, expected the encoder that the policy of {checkpoint} was trained on; if it lies "
            "elsewhere now: encoder.checkpoint=<file>, or weights= in Python"
        )
    encoder = build_encoder(settings).to(device)
    place = settings.get("checkpoint")  # two files of one name are what is mixed up most
    given = f"{encoder.name} ({place})" if place else encoder.name
    check_contract(contract, encoder={"name": given, "fingerprint": encoder.fingerprint})
    return policy, encoder, contract


def image_size_of(contract: Mapping[str, Any], encoder: S2Encoder) -> ImageSize:
    """The frames that a policy wants: one side for all, or (H, W) of each camera where they are not all squares.

    Square ones are those that its encoder reads without resizing; of others what counts is their shape.
    """
    wide = contract["encoder"].get("frames") or {}
    side = (encoder.image_size, encoder.image_size)
    return as_image_size({name: tuple(wide.get(name, side)) for name in contract["cameras"]})


def load_actor(
    checkpoint: str | Path, device: str = "auto", weights: str | Path | None = None
) -> tuple[Actor, S2Encoder, dict[str, Any]]:
    """A checkpoint as an actor for one robot, its encoder and its contract.

    Arguments and errors as :func:`load_policy`; the device by name, `auto` for the GPU if there is one.
    """
    policy, encoder, contract = load_policy(checkpoint, device_of(device), weights)
    dtype = contract["encoder"]["features_dtype"]
    geometry = contract.get("camera_geometry") or {}
    sizes = {name: camera["size"] for name, camera in geometry.items() if "size" in camera}
    sizes |= contract["encoder"].get("frames") or {}
    # rounded as the training saw them, out of the cache
    actor = Actor(policy, lambda images: as_stored(encoder.encode(images), dtype), sizes, encoder.map_of)
    return actor, encoder, contract
