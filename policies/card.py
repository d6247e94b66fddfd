"""The model card of a checkpoint: README.md with the YAML that a hub of models reads.

    card(policy.spec, contract, parameters=4_200_000)
    card(policy.spec, contract, parameters, {"success": 0.992, "low": 0.957, "high": 0.999, "episodes": 128})

Nothing reads it back. It follows from the checkpoint and a summary alone, so the same training gives the same text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from s2robot.policies.spec import PolicySpec

CARD, RECORD = "README.md", "policy.json"
_TEXT = """---
{head}
---

# {title}

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


def write_card(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write a checkpoint's card again with an evaluation's summary; a folder that cannot be written to keeps its card."""
    record = json.loads((folder / RECORD).read_text())
    spec = PolicySpec.from_dict(record["spec"], f"{folder / RECORD}: spec")
    fresh = folder / f".{CARD}.part"
    try:
        fresh.write_text(
            card(spec, record["contract"], summary["policy"]["parameters"], summary), encoding="utf-8"
        )
        os.replace(fresh, folder / CARD)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


def card(
    spec: PolicySpec, contract: Mapping[str, Any], parameters: int, summary: Mapping[str, Any] | None = None
) -> str:
    """Return the text of a card.

    Args:
        parameters: of the networks, without the encoder.
        summary: of an evaluation, if there is one: success, low, high (shares), episodes.
    """
    encoder, dataset, robot = contract["encoder"], contract["dataset"], str(contract["robot"])
    name = str(dataset.get("name", "demos"))
    title = f"{robot} policy, trained on {name}"
    head: dict[str, Any] = {
        "library_name": "s2robot",
        "pipeline_tag": "robotics",
        "license": "mit",
        "tags": ["s2robot", "robotics", "imitation-learning", robot],
        "datasets": [re.sub(r"[^\w.-]+", "-", name)],
    }
    demos = [
        name,
        f"{dataset.get('episodes', '?')} episodes",
        f"`{str(dataset.get('fingerprint', ''))[:12]}`",
    ]
    plan = f"{spec.execute} of {spec.chunk} actions a plan"
    facts = {
        "robot": robot,
        "cameras": _cameras(spec, contract),
        "encoder": f"{encoder.get('name', '')} `{encoder['fingerprint'][:12]}`, {_tuned(encoder)}",
        "policy": f"{spec.kind}, {spec.head.kind}, {parameters / 1e6:.2f} M parameters; {plan}",
        "demos": ", ".join(demos).removesuffix(", ``"),
    }
    facts |= {key: str(getattr(spec, key)) for key in ("action", "proprio") if getattr(spec, f"{key}_parts")}
    if steps := (contract.get("training") or {}).get("step"):
        facts["training"] = f"{steps} steps"
    if summary:
        success, low, high = (100 * summary[key] for key in ("success", "low", "high"))
        count = summary["episodes"]
        facts["success"] = f"{success:.1f} % of {count} episodes (95 % interval {low:.1f}–{high:.1f} %)"
        metric = {
            "type": "success_rate",
            "name": "success rate",
            "value": round(float(summary["success"]), 4),
        }
        result = {
            "task": {"type": "robotics", "name": str(summary.get("success_rule", "success"))},
            "dataset": {"type": "simulation", "name": f"{count} seeded positions"},
            "metrics": [metric],
        }
        head |= {"metrics": ["success_rate"], "model-index": [{"name": title, "results": [result]}]}
    return _TEXT.format(
        head=OmegaConf.to_yaml(OmegaConf.create(head)).rstrip(), title=title, spec=spec, contract=contract,
        facts="\n".join(f"| {key} | {value} |" for key, value in facts.items()),
    )  # fmt: skip


def _cameras(spec: PolicySpec, contract: Mapping[str, Any]) -> str:
    shapes = {key: camera.get("size") for key, camera in (contract.get("camera_geometry") or {}).items()}
    shapes |= contract["encoder"].get("frames") or {}
    sizes = [f" ({' × '.join(map(str, shapes[c]))} px)" if shapes.get(c) else "" for c in spec.cameras]
    return ", ".join(map("".join, zip(spec.cameras, sizes, strict=True)))


def _tuned(encoder: Mapping[str, Any]) -> str:
    if not (tuned := encoder.get("tuned")):
        return "frozen, not part of these weights"
    how = f" by LoRA of rank {tuned['lora']}" if tuned["lora"] else ""
    return f"its last {tuned['blocks']} blocks fine-tuned{how} (encoder.safetensors), the others not part of these weights"
