"""The model card of a checkpoint: README.md with the head in YAML that a hub of models reads.

    card(policy.spec, contract, parameters=4_200_000)
    card(policy.spec, contract, parameters, {"success": 0.992, "low": 0.957, "high": 0.999, "episodes": 128})

It is for people and for hubs: nothing reads it back, and no fingerprint knows it. It follows from the checkpoint (and a
summary) alone, so that the same training gives the same text.
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


def write_card(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write a checkpoint's card anew, with what an evaluation's summary says of it. The folder appears whole all the while.

    A folder that cannot be written to (one that is shared, say) keeps the card that it has.
    """
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
    """The text of a card.

    Args:
        contract: what the checkpoint carries.
        parameters: of the networks, without the encoder.
        summary: of an evaluation, where there is one: success, low, high (shares), episodes.
    """
    dataset = str(contract["dataset"].get("name", "demos"))
    title = f"{contract['robot']} policy, trained on {dataset}"
    head: dict[str, Any] = {
        "library_name": "s2robot",
        "pipeline_tag": "robotics",
        "license": "mit",
        "tags": ["s2robot", "robotics", "imitation-learning", str(contract["robot"])],
        "datasets": [re.sub(r"[^\w.-]+", "-", dataset)],
    }
    if summary:
        head["metrics"] = ["success_rate"]
        head["model-index"] = [_result(title, dataset, summary)]
    lines = [
        "---", OmegaConf.to_yaml(OmegaConf.create(head)).rstrip(), "---", "", f"# {title}", "",
        "A policy of s2robot. It needs no simulator to act:", "",
        "```python", "from s2robot import load_policy", "",
        'policy = load_policy("<this folder>")', "policy.reset()  # before each episode",
        "action = policy.act(observation)", "```", "",
        "`observation` is `{\"images\": {camera: uint8 (H, W, 3) RGB, upright}, \"proprio\": float32 "
        f"({spec.proprio_dim},)}}`, the action float32 ({spec.action_dim},) as `{contract['action_frame']}`, "
        f"{contract['rate_hz']:g} times a second.", "",
        "| | |", "|---|---|",
        *(f"| {name} | {value} |" for name, value in _facts(spec, contract, parameters, summary).items()), "",
        "The licence in the head is s2robot's own: change it where demos or encoder have another.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _facts(
    spec: PolicySpec, contract: Mapping[str, Any], parameters: int, summary: Mapping[str, Any] | None
) -> dict[str, str]:
    encoder, dataset = contract["encoder"], contract["dataset"]
    shapes = {name: camera.get("size") for name, camera in (contract.get("camera_geometry") or {}).items()}
    shapes |= encoder.get("frames") or {}
    cameras = [
        f"{c} ({' × '.join(map(str, shapes[c]))} px)" if shapes.get(c) else c for c in contract["cameras"]
    ]
    facts = {
        "robot": str(contract["robot"]),
        "cameras": ", ".join(cameras),
        "encoder": f"{encoder.get('name', '')} `{encoder['fingerprint'][:12]}`, {_encoder(encoder)}",
        "policy": f"{spec.kind}, {spec.head.kind}, {parameters / 1e6:.2f} M parameters; {spec.execute} of {spec.chunk} actions a plan",
        "demos": ", ".join(
            [str(dataset.get("name", "demos")), f"{dataset.get('episodes', '?')} episodes"]
            + [f"`{str(dataset[key])[:12]}`" for key in ("fingerprint",) if key in dataset]
        ),
    }
    facts |= {
        what: str(getattr(spec, what)) for what in ("action", "proprio") if getattr(spec, f"{what}_parts")
    }
    if steps := (contract.get("training") or {}).get("step"):
        facts["training"] = f"{steps} steps"
    if summary:
        facts["success"] = (
            f"{100 * summary['success']:.1f} % of {summary['episodes']} episodes "
            f"(95 % interval {100 * summary['low']:.1f}–{100 * summary['high']:.1f} %)"
        )
    return facts


def _encoder(encoder: Mapping[str, Any]) -> str:
    if tuned := encoder.get("tuned"):
        how = f" by LoRA of rank {tuned['lora']}" if tuned["lora"] else ""
        return f"its last {tuned['blocks']} blocks fine-tuned{how} (encoder.safetensors), the others not part of these weights"
    return "frozen, not part of these weights"


def _result(title: str, dataset: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the hub's model-index."""
    metric = {"type": "success_rate", "name": "success rate", "value": round(float(summary["success"]), 4)}
    task = {"type": "robotics", "name": str(summary.get("success_rule", "success"))}
    where = {"type": "simulation", "name": f"{summary['episodes']} seeded positions"}
    return {"name": title, "results": [{"task": task, "dataset": where, "metrics": [metric]}]}
