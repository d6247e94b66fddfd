"""A policy on disk: one folder with `policy.safetensors` and `policy.json`, all that deployment needs.

policy.json holds the schema, spec (PolicySpec), contract (encoder, cameras, camera geometry, robot, joint names, action
frame, rate, dataset, versions, training summary) and the sha256 of the tensors. The normalisation is among the tensors.
No pickle anywhere. README.md beside them is the model card, which nothing reads. encoder.safetensors holds the blocks of
the encoder that were trained too, if any.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from s2robot.core.parts import same_parts
from s2robot.core.settings import Stored, read
from s2robot.policies.card import CARD, RECORD, card
from s2robot.policies.errors import PolicyError
from s2robot.policies.parts import Parts
from s2robot.policies.policy import ChunkPolicy, PolicySpec

SCHEMA = 2
TENSORS = "policy.safetensors"
ENCODER = "encoder.safetensors"
PARTS = {"action_parts": "action", "proprio_parts": "proprio"}  # of a contract and a spec: what numbers are


class _Encoder(Stored):
    fingerprint: str


class Contract(Stored):
    """The keys that every contract has; other keys are stored unchanged."""

    encoder: _Encoder
    cameras: list[str]
    robot: str
    joint_names: list[str]
    action_frame: str
    rate_hz: float
    dataset: dict[str, Any]


class _Record(Stored):
    schema_: Literal[2] = Field(alias="schema")
    spec: dict[str, Any]
    contract: dict[str, Any]
    tensors_sha256: str
    encoder_sha256: str | None = None


CHECKED = (*(key for key in Contract.model_fields if key != "dataset"), *PARTS)


def save_checkpoint(
    folder: str | Path,
    policy: ChunkPolicy,
    contract: Mapping[str, Any],
    tuned: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write the checkpoint `folder`, replacing an older one; a kill at any moment leaves the old or the new.

    Args:
        contract: see :class:`Contract`, and what else is worth keeping: camera_geometry, versions, training, and
            action_parts and proprio_parts where they are not the usual. Plain JSON without NaN.
        tuned: the weights of the encoder that were trained, by the model's names; the contract's fingerprint is that
            with them.

    Raises:
        PolicyError: a missing key, parts or cameras that are not the policy's, a policy without normalisation, or a
            folder that is something else.
    """
    folder, contract = Path(folder), dict(contract)
    _check(contract, policy.spec, "contract")
    if not bool(policy.normaliser.fitted):
        raise PolicyError("the policy's normaliser was never fitted; call fit_normaliser before saving")
    if folder.exists() and not (folder / RECORD).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PolicyError(f"{folder} exists and is no checkpoint (it has no {RECORD}); nothing was written")
    contract.setdefault(
        "versions", {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    )
    files = {TENSORS: _bytes_of(policy.state_dict())} | ({ENCODER: _bytes_of(tuned)} if tuned else {})
    record = {
        "schema": SCHEMA,
        "spec": policy.spec.to_dict(),
        "contract": contract,
        **{f"{Path(name).stem}_sha256": hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    record["tensors_sha256"] = record.pop("policy_sha256")
    try:
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise PolicyError(f"contract: not plain JSON ({error}); nothing was written") from error
    about = card(policy.spec, contract, sum(parameter.numel() for parameter in policy.parameters()))
    try:
        _replace(folder, files | {RECORD: text.encode(), CARD: about.encode()})
    except OSError as error:  # a full or read-only disk
        raise PolicyError(f"checkpoint {folder}: cannot be written: {error.strerror or error}") from error
    return folder


def load_checkpoint(
    folder: str | Path, device: str | torch.device = "cpu"
) -> tuple[ChunkPolicy, dict[str, Any]]:
    """Return the policy, in eval mode on `device`, and its contract. Weights load strictly.

    Raises:
        PolicyError: a missing folder, file, key or tensor, a truncated file, a wrong shape, or another schema.
    """
    place, record = _record_of(Path(folder))
    state = _tensors_of(place / TENSORS, record.tensors_sha256)
    spec = PolicySpec.from_dict(record.spec, f"{place / RECORD}: spec")
    _check(record.contract, spec, f"{place / RECORD}: contract")
    policy = ChunkPolicy(spec)
    _check_tensors(policy, state, place / TENSORS)
    policy.load_state_dict(state, strict=True)
    return policy.to(device).eval(), record.contract


def load_tuned(folder: str | Path) -> dict[str, torch.Tensor]:
    """Return the weights of the encoder that were trained with a policy, by the model's names; {} if it was frozen.

    Raises:
        PolicyError: as `load_checkpoint`.
    """
    place, record = _record_of(Path(folder))
    return _tensors_of(place / ENCODER, record.encoder_sha256) if record.encoder_sha256 else {}


def _record_of(folder: Path) -> tuple[Path, _Record]:
    """Return where a checkpoint lies (a kill may have left the old one), and its policy.json."""
    place = folder if folder.exists() or not _old(folder).exists() else _old(folder)
    path = place / RECORD
    if not place.is_dir():
        problem = f"a file, expected its folder {place.parent}" if place.is_file() else "no such folder"
        raise PolicyError(f"checkpoint {folder}: {problem}")
    for name in (RECORD, TENSORS):
        if not (place / name).is_file():
            raise PolicyError(f"checkpoint {folder}: {name} is missing")
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise PolicyError(f"{path}: not valid JSON, the file is truncated or damaged") from error
    return place, read(_Record, record, f"{path}: ")


def _bytes_of(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return tensors_to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _tensors_of(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise PolicyError(f"checkpoint {path.parent}: {path.name} is missing")
    data = path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise PolicyError(
            f"{path}: sha256 is {found[:12]}…, {RECORD} says {sha256[:12]}…; "
            "the file is truncated or of another checkpoint"
        )
    try:
        return tensors_from_bytes(data)
    except SafetensorError as error:
        raise PolicyError(f"{path}: not a safetensors file ({error})") from error


def check_contract(contract: Mapping[str, Any], **actual: Any) -> None:
    """Reject the use of a policy with something it was not made for; PolicyError names both sides.

    Args:
        actual: any of encoder (its fingerprint, or a dict that holds it), cameras (those at hand, of which the policy's
            must be a part), robot, joint_names, action_frame, rate_hz, action_parts and proprio_parts (None: the usual).
            What is not given is not checked.
    """
    for key, value in actual.items():
        if key not in CHECKED:
            raise PolicyError(f"check_contract: unknown key '{key}', expected one of {', '.join(CHECKED)}")
        wanted: Any = contract.get(key) if key in PARTS else contract[key]
        if key in PARTS:
            trained, given = (_parts_of(parts, key, contract) for parts in (wanted, value))
            if not same_parts(trained.parts, given.parts):
                raise PolicyError(f"the policy's {PARTS[key]} is {trained}, given is {given}")
        elif key == "encoder":
            other = value if isinstance(value, Mapping) else {"fingerprint": value}
            if other["fingerprint"] != wanted["fingerprint"]:
                ours, theirs = (f"{e.get('name', '')} {e['fingerprint'][:12]}" for e in (wanted, other))
                raise PolicyError(
                    f"the policy was trained on encoder {ours.strip()}, the one given is {theirs.strip()}: "
                    "its weights or settings differ"
                )
        elif key == "cameras":
            if missing := [camera for camera in wanted if camera not in value]:
                raise PolicyError(
                    f"the policy needs cameras {', '.join(wanted)}, given are {', '.join(value)}: "
                    f"'{missing[0]}' is missing"
                )
        elif key == "rate_hz":
            if not math.isclose(float(value), float(wanted), rel_tol=1e-6):
                raise PolicyError(f"the policy acts at {wanted} Hz, given are {value} Hz")
        elif (list(value) != list(wanted)) if key == "joint_names" else (value != wanted):
            raise PolicyError(f"the policy was trained for {key} '{wanted}', given is '{value}'")


def _check(contract: Mapping[str, Any], spec: PolicySpec, where: str) -> None:
    """Reject a contract that lacks a key, or has other cameras or parts than the policy."""
    known = read(Contract, contract, f"{where}: ")
    if known.cameras != list(spec.cameras):
        raise PolicyError(f"{where}: cameras are {known.cameras}, the policy's are {list(spec.cameras)}")
    for key, usual in PARTS.items():
        own: Parts = getattr(spec, usual)
        found = Parts.read(contract.get(key), own.size, f"{where}: {key}", usual)
        if found != own:
            raise PolicyError(f"{where}: {key} are {found}, the policy's are {own}")


def _parts_of(parts: Any, key: str, contract: Mapping[str, Any]) -> Parts:
    """Plain parts as such; None is an arm of the contract's joints."""
    size = sum(int(part["size"]) for part in parts) if parts else len(contract["joint_names"]) + 1
    return Parts.read(parts or None, size, key, PARTS[key])


def _check_tensors(policy: ChunkPolicy, state: Mapping[str, torch.Tensor], path: Path) -> None:
    expected = policy.state_dict()
    for name in sorted(expected.keys() - state.keys()):
        raise PolicyError(f"{path}: tensor '{name}' is missing")
    for name in sorted(state.keys() - expected.keys()):
        raise PolicyError(f"{path}: tensor '{name}' is not part of the policy that {RECORD} describes")
    for name, tensor in state.items():
        if tensor.shape != (want := expected[name].shape):
            raise PolicyError(
                f"{path}: tensor '{name}' has shape {tuple(tensor.shape)}, expected {tuple(want)}"
            )


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files as `folder`, in place of what is there; nothing half-written is left where that fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = folder.with_name(f".{folder.name}.new"), _old(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        for name, data in files.items():
            with open(fresh / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # whole before it gets its name, also after a power cut
        # A folder cannot be swapped in one call everywhere. Between the two renames the old checkpoint stands
        # under its other name, where load_checkpoint finds it.
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
