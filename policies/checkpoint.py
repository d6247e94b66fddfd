"""Save and load a policy: one folder with `policy.safetensors` and `policy.json` is all that deployment needs.

policy.json holds the schema, spec (PolicySpec), contract (encoder, cameras, camera geometry, robot, joint names, action
frame, rate, dataset, versions, training summary) and the sha256 of the tensors. The normalisation is among the tensors.
There is no pickle. encoder.safetensors holds the trained weights of the encoder, if any: all, or some blocks.
README.md is the model card, generated from the other files and an evaluation's summary; nothing reads it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from s2robot.core.errors import UserError, check_same, reported
from s2robot.core.files import parse_json, write_text
from s2robot.core.parts import Contract, parts_of, same_parts, words
from s2robot.core.provenance import versions
from s2robot.core.settings import Stored, read
from s2robot.policies.policy import ChunkPolicy, PolicySpec

RECORD, CARD, TENSORS = "policy.json", "README.md", "policy.safetensors"
ENCODER = "encoder.safetensors"
_SHA256 = {TENSORS: "tensors_sha256", ENCODER: "encoder_sha256"}  # keys in policy.json
Weights = Mapping[str, torch.Tensor]
PARTS = {"action_parts": "action", "proprio_parts": "proprio"}  # contract key -> array that it describes

_TEXT = """---
library_name: s2robot
pipeline_tag: robotics
license: mit
tags: {tags}
---

# {contract[robot]} policy, trained on {demos}

An s2robot policy. It runs without a simulator:

```python
from s2robot import load_policy

policy = load_policy("<this folder>")
policy.reset()  # before each episode
action = policy.act(observation)
```

`observation` is `{{"images": {{camera: uint8 (H, W, 3) RGB, upright}}, "proprio": float32 ({spec.proprio_dim},)}}`, the \
action float32 ({spec.action_dim},) as `{contract[action_frame]}`, at {contract[rate_hz]:g} Hz.

| | |
|---|---|
{facts}

The licence in the metadata is that of s2robot; change it if the demos or the encoder have another.
"""


class _Record(Stored):
    schema_: Literal[2] = Field(alias="schema")
    spec: dict[str, Any]
    contract: dict[str, Any]
    tensors_sha256: str
    encoder_sha256: str | None = None


def save_checkpoint(
    folder: str | Path, policy: ChunkPolicy, contract: Mapping[str, Any], tuned: Weights | None = None
) -> Path:
    """Write the checkpoint `folder`, replacing an older one; a kill at any time leaves the old or the new one.

    Args:
        contract: see :class:`Contract`; also versions, action_parts, proprio_parts, or others. Plain JSON without NaN.
        tuned: the trained weights of the encoder, with the model's names; the contract's fingerprint includes them.

    Raises:
        UserError: a missing key, parts or cameras that differ from the policy's, or a folder with other contents.
    """
    folder, contract = Path(folder), dict(contract)
    _check(contract, policy.spec, "contract")
    if folder.exists() and not (folder / RECORD).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: expected a new folder or a checkpoint, got one without {RECORD}")
    contract.setdefault("versions", versions())
    files = {TENSORS: _bytes_of(policy.state_dict())} | ({ENCODER: _bytes_of(tuned)} if tuned else {})
    record = {"schema": 2, "spec": policy.spec.to_dict(), "contract": contract}
    record |= {_SHA256[name]: hashlib.sha256(data).hexdigest() for name, data in files.items()}
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

    UserError: a missing folder, file, key or tensor, a truncated file, a wrong shape, or another schema.
    """
    source, record = _record_of(Path(folder))
    state = _tensors_of(source / TENSORS, record.tensors_sha256)
    spec = PolicySpec.from_dict(record.spec, f"{source / RECORD}: spec")
    _check(record.contract, spec, f"{source / RECORD}: contract")
    with torch.device("meta"):  # allocates nothing: the file sets the sizes
        sizes = ChunkPolicy(spec).state_dict()
    expected, found = ({name: tuple(x.shape) for name, x in s.items()} for s in (sizes, state))
    check_same(f"{source / TENSORS}: shape of a tensor", expected, found)
    (policy := ChunkPolicy(spec)).load_state_dict(state, strict=True)
    return policy.to(device).eval(), record.contract


def load_tuned(folder: str | Path) -> dict[str, torch.Tensor]:
    """Return the encoder weights trained with a policy, by the model's names; {} if the encoder was frozen."""
    source, record = _record_of(Path(folder))
    return _tensors_of(source / ENCODER, record.encoder_sha256) if record.encoder_sha256 else {}


def _record_of(folder: Path) -> tuple[Path, _Record]:
    """Return the folder of a checkpoint (after a kill, that of the old one) and its policy.json."""
    source = folder if folder.exists() or not _old(folder).exists() else _old(folder)
    path = source / RECORD
    return source, read(_Record, parse_json(path, _read(path)), f"{path}: ")


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
    with reported(path, "; the file is truncated or belongs to another checkpoint"):
        if (found := hashlib.sha256(data).hexdigest()) != sha256:
            raise ValueError(f"expected sha256 {sha256[:12]}… as in {RECORD}, got {found[:12]}…")
        return tensors_from_bytes(data)


def check_contract(contract: Mapping[str, Any], where: Any = "", **actual: Any) -> None:
    """Reject a policy that does not match the actual setup; UserError names both sides.

    Args:
        where: prefix of the error.
        actual: any of encoder (its fingerprint, or a dict that holds it), cameras (all available ones, including the
            policy's), robot, joint_names, action_frame, rate_hz, action_parts and proprio_parts (None: the default).
            Only these are checked.
    """
    for key, value in actual.items():
        expected: Any = contract.get(key)
        if key in PARTS:
            trained, found = (parts_of({**contract, key: parts}, PARTS[key]) for parts in (expected, value))
            same = same_parts(trained, found)
            why = f"the policy's {PARTS[key]} is {words(trained)}, got {words(found)}"
        elif key == "encoder":
            both = (expected, value if isinstance(value, Mapping) else {"fingerprint": value})
            same = both[0]["fingerprint"] == both[1]["fingerprint"]
            one, other = (f"{e.get('name', '')} {e['fingerprint'][:12]}".strip() for e in both)
            why = f"the policy was trained on encoder {one}, got {other}, whose weights or settings differ"
        elif key == "cameras":
            missing = ", ".join(f"'{camera}'" for camera in expected if camera not in value)
            same = not missing
            why = f"the policy requires cameras {', '.join(expected)}, got {', '.join(value)}: {missing} is missing"
        elif key == "rate_hz":
            same = math.isclose(float(value), float(expected), rel_tol=1e-6)
            why = f"the policy acts at {expected} Hz, got {value} Hz"
        else:
            same = expected == (list(value) if key == "joint_names" else value)
            why = f"the policy was trained for {key} '{expected}', got '{value}'"
        if not same:
            raise UserError(f"{where}: {why}" if where else why)


def _check(contract: Mapping[str, Any], spec: PolicySpec, where: str) -> None:
    """Reject a contract that lacks a key, or whose cameras or parts differ from the policy's."""
    found = read(Contract, contract, f"{where}: ")
    check_same(where, {"cameras": spec.cameras}, {"cameras": found.cameras})
    for key, array in PARTS.items():
        parts, stored = getattr(spec, array).parts, parts_of(contract, array)
        if not same_parts(parts, stored):
            raise UserError(f"{where}: {key}: expected {words(parts)}, got {words(stored)}")


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files to `folder`, replacing its contents; a failure leaves no partial files."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = folder.with_name(f".{folder.name}.new"), _old(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        for name, data in files.items():
            with open(fresh / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # complete before the rename, even after a power failure
        # Not all systems can swap folders atomically. Between the two renames, load_checkpoint finds the old checkpoint
        # under its temporary name.
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def write_card(folder: Path, summary: Mapping[str, Any]) -> None:
    """Rewrite a checkpoint's card with an evaluation's summary; a read-only folder keeps its card."""
    source, record = _record_of(folder)
    spec = PolicySpec.from_dict(record.spec, f"{source / RECORD}: spec")
    text = _card(spec, record.contract, summary["policy"]["parameters"], summary)
    with suppress(OSError):
        write_text(source / CARD, text)


def _card(
    spec: PolicySpec, contract: Mapping[str, Any], parameters: int, summary: Mapping[str, Any] | None = None
) -> str:
    """Return the text of a card; parameters: without the encoder; summary: success, low, high (fractions), episodes."""
    encoder, dataset = contract["encoder"], contract["dataset"]
    weights = "frozen, not part of these weights"
    if encoder.get("settings", {}).get("trained"):
        weights = "trained with the policy (encoder.safetensors)"
    elif tuned := encoder.get("tuned"):
        how = f" by LoRA of rank {tuned['lora']}" if tuned["lora"] else ""
        weights = f"its last {tuned['blocks']} blocks fine-tuned{how} (encoder.safetensors)"
    plan = f"executes {spec.execute} of {spec.chunk} planned actions"
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
