"""Make records like those of an evaluation."""

import json
from pathlib import Path
from typing import Any


def record(episode: int, success: bool = True, stage: str = "held", **more: Any) -> dict[str, Any]:
    """Return the record of an episode of the cube task; a failure ends in `stage`."""
    return {
        "episode": episode, "seed": 10_000 + episode, "cube_xy": [0.01 * (episode % 9), -0.02], "cube_yaw": 0.5,
        "success": success, "stage": stage, "steps": 25 if success else 60,
        "time_to_success_s": 2.5 if success else None, "closest_m": 0.012, "video": None, **more,
    }  # fmt: skip


def save_records(folder: Path, records: list[dict[str, Any]]) -> None:
    """Write the journal of a run directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "episodes.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
