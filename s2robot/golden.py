"""A checkpoint's golden trace: observations with the tokens and actions that they gave where it was trained.

    write_trace(folder, policy, encoder, contract, image_size, states)    # at the end of a training
    check_trace(folder, policy, encoder, contract)                        # at each loading; names the stage that drifts

Weights alone do not decide what a policy does: the version of a library, a device or a changed normalisation do, too.
The images are smooth noise, so that no trace shows anybody's laboratory; the states are the dataset's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from s2robot.core.errors import UserError
from s2robot.core.files import replacing
from s2robot.encoders.cache import as_stored
from s2robot.encoders.encoder import S2Encoder
from s2robot.envs.frames import sizes_of
from s2robot.policies import BatchActor, ChunkPolicy

FILE = "golden.safetensors"
_COARSE = 12  # px, of the noise before it is enlarged
# Largest distance to the trace, as a share of the trace's own root mean square. Another kind of processor gives 2.5e-3 in the
# tokens of a bfloat16 encoder and 3e-7 in actions; TF32 and other kernels on a GPU give up to 1e-2.
ON_CPU, SHORT, ELSEWHERE = 2e-3, 2e-2, 5e-2  # SHORT: the tokens of a 16-bit encoder


def write_trace(
    folder: Path,
    policy: ChunkPolicy,
    encoder: S2Encoder,
    contract: Mapping[str, Any],
    image_size: Any,
    states: np.ndarray,
) -> None:
    """Write `golden.safetensors` into a checkpoint; ``image_size`` as of `loading.image_size_of`, states (B, P)."""
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
    """Compute the trace again, if the checkpoint has one; UserError: a damaged trace, or a stage beyond the tolerance."""
    path = folder / FILE
    if not path.is_file():  # of an earlier version, or of a training that was killed at its end
        return
    try:
        trace = load(path.read_bytes())
        inputs = trace["tokens"], trace["proprio"], trace["actions"]
        stages = {
            "the encoder": (_tokens(encoder, contract, trace), inputs[0]),
            "the policy, from the same tokens": (_actions(policy, *inputs[:2]), inputs[2]),
        }
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: expected a trace of this checkpoint, which is damaged: {str(error).splitlines()[0]}"
        ) from None
    device = next(policy.parameters()).device.type
    of_encoder = ON_CPU if encoder.dtype == "float32" else SHORT
    for (stage, (found, wanted)), on_cpu in zip(stages.items(), (of_encoder, ON_CPU), strict=True):
        away, most = _away(found, wanted), on_cpu if device == "cpu" else ELSEWHERE
        if not away <= most:
            there = (contract.get("versions") or {}).get("torch", "?")
            raise UserError(
                f"{path}: {stage}: expected what it gave after training within {most:g}, got {away:.2g} away "
                f"(torch {torch.__version__} on {device} here, {there} there)"
            )


def _away(found: np.ndarray, wanted: np.ndarray) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    f, w = found.astype(np.float64), wanted.astype(np.float64)
    return float(np.sqrt(np.mean((f - w) ** 2)) / max(np.sqrt(np.mean(w**2)), 1e-9))


def _tokens(encoder: S2Encoder, contract: Mapping[str, Any], trace: Mapping[str, np.ndarray]) -> np.ndarray:
    frames = [trace[f"images.{name}"] for name in contract["cameras"]]
    tokens = as_stored(encoder.encode_cameras(frames), dtype := contract["encoder"]["features_dtype"])
    return tokens.cpu().numpy().astype(dtype)  # (B, C, N, D)


def _actions(policy: ChunkPolicy, tokens: np.ndarray, proprio: np.ndarray) -> np.ndarray:
    """Unclipped plans (B, K, A): clipping would flip a switch near its threshold."""
    return BatchActor(policy, len(tokens)).unclipped(tokens.astype(np.float32), proprio)
