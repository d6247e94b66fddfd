"""A checkpoint's golden trace: sample observations with the tokens and actions computed right after training.

    write_trace(folder, policy, encoder, contract, image_size, states)    # at the end of training
    check_trace(folder, policy, encoder, contract)                        # at each load; names the stage that differs

A policy's behaviour depends on library versions, the device and the normalisation, as well as on its weights. The images
are smooth noise, so a trace never reveals the scene in front of the robot; the states come from the dataset.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from s2robot.core.errors import UserError, check_same
from s2robot.core.files import replacing
from s2robot.encoders.cache import as_stored
from s2robot.encoders.encoder import S2Encoder
from s2robot.envs.frames import sizes_of
from s2robot.policies import BatchActor, ChunkPolicy

FILE = "golden.safetensors"
_COARSE = 12  # size of the noise before upscaling (px)
# Tolerances, relative to the root mean square of the trace. Another CPU model changes the tokens of a bfloat16 encoder by
# 2.5e-3 and actions by 3e-7; TF32 and other GPU kernels change them by up to 1e-2.
_CPU, _HALF, _GPU = 2e-3, 2e-2, 5e-2  # _HALF: tokens of a 16-bit encoder on the CPU


def write_trace(
    folder: Path, policy: ChunkPolicy, encoder: S2Encoder, contract: Mapping[str, Any], image_size: Any,
    states: np.ndarray,
) -> None:  # fmt: skip
    """Write `golden.safetensors` into a checkpoint; ``image_size``: see `loading.image_size_of`, ``states``: (B, P)."""
    rng = np.random.default_rng(0)
    trace = {"proprio": np.asarray(states, np.float32)}
    for name, size in sizes_of(image_size, contract["cameras"]).items():
        coarse = rng.integers(0, 256, (len(states), _COARSE, _COARSE, 3), np.uint8)
        fine = (Image.fromarray(x).resize(size[::-1], Image.Resampling.BICUBIC) for x in coarse)
        trace[f"images.{name}"] = np.stack([np.asarray(image) for image in fine])  # (B, H, W, 3)
    trace["tokens"] = _tokens(encoder, contract, trace)
    trace["actions"] = _actions(policy, trace["tokens"], trace["proprio"])
    with replacing(folder / FILE) as part:
        part.write_bytes(save({name: np.ascontiguousarray(array) for name, array in trace.items()}))


def check_trace(folder: Path, policy: ChunkPolicy, encoder: S2Encoder, contract: Mapping[str, Any]) -> None:
    """Recompute a checkpoint's trace, if it has one. UserError if it is damaged, or a stage exceeds its tolerance."""
    path = folder / FILE
    if not path.is_file():  # written by an earlier version, or training was killed at its end
        return
    device = next(policy.parameters()).device
    try:
        trace = load(path.read_bytes())
        tokens, found = trace["tokens"], _tokens(encoder, contract, trace)
        check_same(path, found.shape, tokens.shape, " tokens")  # before the policy allocates for each row
        actions = _actions(policy, tokens, trace["proprio"]), trace["actions"]
        check_same(path, actions[0].shape, actions[1].shape, " actions")
        # in the network's units all parts of an action count alike, and a rotation has one form
        inner = (policy.spec.action.inner(torch.as_tensor(x).to(device)) for x in actions)
        scaled = (policy.normaliser.action(x) for x in inner)
        stages = {
            "the encoder": (found, tokens),
            "the policy, from the same tokens": tuple(x.cpu().numpy() for x in scaled),
        }
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        got = str(error).splitlines()[0]
        raise UserError(f"{path}: expected a readable trace of this checkpoint, got: {got}") from None
    of_encoder = _CPU if encoder.dtype == "float32" else _HALF
    for (stage, (found, expected)), on_cpu in zip(stages.items(), (of_encoder, _CPU), strict=True):
        found, expected = (x.astype(np.float64) for x in (found, expected))
        deviation = float(np.linalg.norm(found - expected)) / max(float(np.linalg.norm(expected)), 1e-9)
        tolerance = on_cpu if device.type == "cpu" else _GPU
        if not deviation <= tolerance:
            trained_with = (contract.get("versions") or {}).get("torch", "?")
            raise UserError(
                f"{path}: {stage}: expected the output after training within {tolerance:g}, got a difference of "
                f"{deviation:.2g} (torch {torch.__version__} on {device.type} here, {trained_with} in training)"
            )


def _tokens(encoder: S2Encoder, contract: Mapping[str, Any], trace: Mapping[str, np.ndarray]) -> np.ndarray:
    frames = [trace[f"images.{name}"] for name in contract["cameras"]]
    tokens = as_stored(encoder.encode_cameras(frames), dtype := contract["encoder"]["features_dtype"])
    return tokens.cpu().numpy().astype(dtype)  # (B, C, N, D)


def _actions(policy: ChunkPolicy, tokens: np.ndarray, proprio: np.ndarray) -> np.ndarray:
    """Return the action chunks (B, K, A) of an episode's first step, before clipping, which could flip a gripper command."""
    return BatchActor(policy, len(tokens)).unclipped(tokens.astype(np.float32), proprio)
