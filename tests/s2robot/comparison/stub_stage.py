"""A stub for one stage of a comparison: it immediately writes the stage's files, computed from the overrides."""

import json
import sys
import zlib
from pathlib import Path


def main(verb: str, words: list[str]) -> None:
    overrides = dict(word.split("=", 1) for word in words)
    folder = Path(overrides["hydra.run.dir"])
    folder.mkdir(parents=True, exist_ok=True)
    if verb == "train":
        (folder / "checkpoint").mkdir(exist_ok=True)
        (folder / "checkpoint/policy.json").write_text("{}")
    if verb == "evaluate":
        assert Path(overrides["checkpoint"], "policy.json").is_file(), "evaluated before training"
        lines = []
        for episode in range(int(overrides["evaluate.episodes"])):
            success = zlib.crc32(f"{folder} {episode}".encode()) % 3 > 0
            record = {
                "episode": episode, "seed": 10000 + episode, "cube_xy": [0.01 * episode, 0.0], "cube_yaw": 0.0,
                "success": success, "stage": "held" if success else "grasp", "steps": 9,
                "time_to_success_s": 0.9 if success else None, "closest_m": 0.0, "progress": 0.25 * (episode % 5), "video": None,
            }  # fmt: skip
            lines.append(json.dumps(record) + "\n")
        (folder / "episodes.jsonl").write_text("".join(lines))
        (folder / "summary.json").write_text("{}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
