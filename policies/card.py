"""The model card of a checkpoint: README.md with the YAML that a hub of models reads.

    card(policy.spec, contract, parameters=4_200_000)
    card(policy.spec, contract, parameters, {"success": 0.992, "low": 0.957, "high": 0.999, "episodes": 128})

Nothing reads it back. It follows from the checkpoint and a summary alone, so the same training gives the same text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from s2robot.policies.spec import PolicySpec

CARD, RECORD = "README.md", "policy.json"
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


def write_card(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write a checkpoint's card again with an evaluation's summary; a folder that cannot be written to keeps its card."""
    record = json.loads((folder / RECORD).read_text())
    spec = PolicySpec.from_dict(record["spec"], f"{folder / RECORD}: spec")
    text = card(spec, record["contract"], summary["policy"]["parameters"], summary)
    fresh = folder / f".{CARD}.part"
    try:
        fresh.write_text(text, encoding="utf-8")
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
    encoder, dataset = contract["encoder"], contract["dataset"]
    weights = "frozen, not part of these weights"
    if tuned := encoder.get("tuned"):
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
    return _TEXT.format(
        tags=tags, contract=contract, demos=dataset.get("name", "demos"), spec=spec, facts=table
    )
