"""A policy on disk: one folder with `policy.safetensors` and `policy.json`, all that deployment needs.

policy.json holds the schema, spec (PolicySpec), contract (encoder, cameras, camera geometry, robot, joint names, action
frame, rate, dataset, versions, training summary) and the sha256 of the tensors. The normalisation is among the tensors.
No pickle anywhere. encoder.safetensors holds what of the encoder was trained too: all of it, or blocks. README.md is the model
card: it follows from the rest and an evaluation's summary, and nothing reads it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from s2robot.core.errors import UserError, check_same, reported
from s2robot.core.files import parse_json, write_text
from s2robot.core.parts import parts_of, same_parts, words
from s2robot.core.settings import Stored, read
from s2robot.policies.policy import ChunkPolicy, PolicySpec

RECORD, CARD, TENSORS = "policy.json", "README.md", "policy.safetensors"
ENCODER = "encoder.safetensors"
Weights = Mapping[str, torch.Tensor]
PARTS = {"action_parts": "action", "proprio_parts": "proprio"}  # of a contract: what numbers are

_TEXT = """---
library_name: s2robot
pipeline_tag: robotics
license: mit
tags: {tags}
---

# {contract[robot]} policy, trained on {demos}

A policy of s2robot. It needs no simulator to act:

```python
from s2robot import load_policy

policy = load_policy("<this folder>")
policy.reset()  # before each episode
action = policy.act(observation)
```

`observation` is `{{"images": {{camera: uint8 (H, W, 3) RGB, upright}}, "proprio": float32 ({spec.proprio_dim},)}}`, the \
action float32 ({spec.action_dim},) as `{contract[action_frame]}`, {contract[rate_hz]:g} times a second.

| | |
|---|---|
{facts}

The licence in the head is s2robot's own: change it where demos or encoder have another.
"""


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


def save_checkpoint(
    folder: str | Path, policy: ChunkPolicy, contract: Mapping[str, Any], tuned: Weights | None = None
) -> Path:
    """Write the checkpoint `folder`, replacing an older one; a kill at any moment leaves the old or the new.

    Args:
        contract: see :class:`Contract`, and what else is worth keeping: camera_geometry, versions, training, and
            action_parts and proprio_parts where they are not the usual. Plain JSON without NaN.
        tuned: the weights of the encoder that were trained, by the model's names; the contract's fingerprint is that
            with them.

    Raises:
        UserError: a missing key, parts or cameras that are not the policy's, or a folder that is something else.
    """
    folder, contract = Path(folder), dict(contract)
    _check(contract, policy.spec, "contract")
    if folder.exists() and not (folder / RECORD).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is no checkpoint (it has no {RECORD}); nothing was written")
    contract.setdefault(
        "versions", {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    )
    files = {TENSORS: _bytes_of(policy.state_dict())} | ({ENCODER: _bytes_of(tuned)} if tuned else {})
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    record = {"schema": 2, "spec": policy.spec.to_dict(), "contract": contract}
    record |= {"encoder_sha256": sums[ENCODER]} if tuned else {}
    record["tensors_sha256"] = sums[TENSORS]
    files[RECORD] = (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()
    files[CARD] = _card(policy.spec, contract, sum(p.numel() for p in policy.parameters())).encode()
    try:
        _replace(folder, files)
    except OSError as error:  # a full or read-only disk
        raise UserError(f"checkpoint {folder}: cannot be written: {error.strerror or error}") from error
    return folder


def load_checkpoint(
    folder: str | Path, device: str | torch.device = "cpu"
) -> tuple[ChunkPolicy, dict[str, Any]]:
    """Return the policy, in eval mode on `device`, and its contract. Weights load strictly.

    UserError for a missing folder, file, key or tensor, a truncated file, a wrong shape, or another schema.
    """
    place, record = _record_of(Path(folder))
    state = _tensors_of(place / TENSORS, record.tensors_sha256)
    spec = PolicySpec.from_dict(record.spec, f"{place / RECORD}: spec")
    _check(record.contract, spec, f"{place / RECORD}: contract")
    policy = ChunkPolicy(spec)
    expected, found = ({name: tuple(x.shape) for name, x in s.items()} for s in (policy.state_dict(), state))
    check_same(f"{place / TENSORS}: shape of a tensor", expected, found)
    policy.load_state_dict(state, strict=True)
    return policy.to(device).eval(), record.contract


def load_tuned(folder: str | Path) -> dict[str, torch.Tensor]:
    """Return the weights of the encoder that were trained with a policy, by the model's names; {} if it was frozen."""
    place, record = _record_of(Path(folder))
    return _tensors_of(place / ENCODER, record.encoder_sha256) if record.encoder_sha256 else {}


def _record_of(folder: Path) -> tuple[Path, _Record]:
    """Return where a checkpoint lies (a kill may have left the old one), and its policy.json."""
    place = folder if folder.exists() or not _old(folder).exists() else _old(folder)
    path = place / RECORD
    return place, read(_Record, parse_json(path, _read(path)), f"{path}: ")


def _read(path: Path) -> bytes:
    folder = path.parent
    if not path.is_file():
        inside = f"{path.name} is missing" if folder.is_dir() else "no such folder"
        problem = f"a file, expected its folder {folder.parent}" if folder.is_file() else inside
        raise UserError(f"checkpoint {folder}: {problem}")
    return path.read_bytes()


def _bytes_of(tensors: Weights) -> bytes:
    return tensors_to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _tensors_of(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    data = _read(path)
    with reported(path, "; the file is truncated or of another checkpoint"):
        if (found := hashlib.sha256(data).hexdigest()) != sha256:
            raise ValueError(f"sha256 is {found[:12]}…, {RECORD} says {sha256[:12]}…")
        return tensors_from_bytes(data)


def check_contract(contract: Mapping[str, Any], where: Any = "", **actual: Any) -> None:
    """Reject the use of a policy with something it was not made for; UserError names both sides.

    Args:
        where: begins the error.
        actual: any of encoder (its fingerprint, or a dict that holds it), cameras (those at hand, of which the policy's
            must be a part), robot, joint_names, action_frame, rate_hz, action_parts and proprio_parts (None: the usual).
            What is not given is not checked.
    """
    for key, value in actual.items():
        wanted: Any = contract.get(key)
        if key in PARTS:
            trained, given = (parts_of({**contract, key: parts}, PARTS[key]) for parts in (wanted, value))
            same = same_parts(trained, given)
            why = f"the policy's {PARTS[key]} is {words(trained)}, given is {words(given)}"
        elif key == "encoder":
            both = (wanted, value if isinstance(value, Mapping) else {"fingerprint": value})
            same = both[0]["fingerprint"] == both[1]["fingerprint"]
            ours, theirs = (f"{e.get('name', '')} {e['fingerprint'][:12]}".strip() for e in both)
            why = f"the policy was trained on encoder {ours}, the one given is {theirs}: its weights or settings differ"
        elif key == "cameras":
            missing = ", ".join(f"'{camera}'" for camera in wanted if camera not in value)
            same = not missing
            why = f"the policy needs cameras {', '.join(wanted)}, given are {', '.join(value)}: {missing} is missing"
        elif key == "rate_hz":
            same = math.isclose(float(value), float(wanted), rel_tol=1e-6)
            why = f"the policy acts at {wanted} Hz, given are {value} Hz"
        else:
            same = wanted == (list(value) if key == "joint_names" else value)
            why = f"the policy was trained for {key} '{wanted}', given is '{value}'"
        if not same:
            raise UserError(f"{where}: {why}" if where else why)


def _check(contract: Mapping[str, Any], spec: PolicySpec, where: str) -> None:
    """Reject a contract that lacks a key, or has other cameras or parts than the policy."""
    found = read(Contract, contract, f"{where}: ")
    check_same(where, {"cameras": spec.cameras}, {"cameras": found.cameras})
    for key, array in PARTS.items():
        ours, theirs = getattr(spec, array).parts, parts_of(contract, array)
        if not same_parts(ours, theirs):
            raise UserError(f"{where}: {key}: expected {words(ours)}, got {words(theirs)}")


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


def write_card(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write a checkpoint's card again with an evaluation's summary; a folder that cannot be written to keeps its card."""
    place, record = _record_of(folder)
    spec = PolicySpec.from_dict(record.spec, f"{place / RECORD}: spec")
    text = _card(spec, record.contract, summary["policy"]["parameters"], summary)
    with suppress(OSError):
        write_text(place / CARD, text)


def _card(
    spec: PolicySpec, contract: Mapping[str, Any], parameters: int, summary: Mapping[str, Any] | None = None
) -> str:
    """The text of a card; parameters: without the encoder's; summary: success, low, high (shares), episodes."""
    encoder, dataset = contract["encoder"], contract["dataset"]
    weights = "frozen, not part of these weights"
    if encoder.get("settings", {}).get("trained"):
        weights = "trained with the policy (encoder.safetensors)"
    elif tuned := encoder.get("tuned"):
        how = f" by LoRA of rank {tuned['lora']}" if tuned["lora"] else ""
        weights = f"its last {tuned['blocks']} blocks fine-tuned{how} (encoder.safetensors)"
    plan = f"{spec.execute} of {spec.chunk} actions a plan"
    facts = {
        "cameras": ", ".join(spec.cameras),
        "encoder": f"{encoder.get('name', '')} `{encoder['fingerprint'][:12]}`, {weights}",
        "policy": f"{spec.kind}, {spec.head.kind}, {parameters / 1e6:.2f} M parameters; {plan}",
        "demos": f"{dataset.get('episodes', '?')} episodes `{str(dataset.get('fingerprint', ''))[:12]}`",
        "training": f"{(contract.get('training') or {}).get('step', '?')} steps",
    }
    facts |= {key: str(getattr(spec, key)) for key in ("action", "proprio") if getattr(spec, f"{key}_parts")}
    if summary:
        success, low, high = (100 * summary[key] for key in ("success", "low", "high"))
        count = summary["episodes"]
        facts["success"] = f"{success:.1f} % of {count} episodes (95 % interval {low:.1f}–{high:.1f} %)"
    tags = json.dumps(["s2robot", "robotics", "imitation-learning", str(contract["robot"])])
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    demos = dataset.get("name", "demos")
    return _TEXT.format(tags=tags, contract=contract, demos=demos, spec=spec, facts=table)
