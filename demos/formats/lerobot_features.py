"""What LeRobot calls the arrays of a store, and how it describes them.

features_of(store, "video").told["observation.images.hand"]      # {"dtype": "video", "shape": [256, 256, 3], "names": ...}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s2robot.demos.errors import mismatch
from s2robot.demos.formats.source import AUTOMATIC
from s2robot.demos.replay import camera_sizes
from s2robot.demos.schema import parts_of
from s2robot.demos.store import EpisodeStore
from s2robot.envs.parts import number_names

NAMES = {"action": "action", "proprio": "observation.state"}


@dataclass(frozen=True)
class Features:
    """Arrays and cameras by the names of their features, and what `info.json` says of each feature."""

    numbers: Mapping[str, str]  # array -> feature
    cameras: Mapping[str, str]  # camera -> feature
    told: Mapping[str, dict[str, Any]]


def features_of(store: EpisodeStore, pictures: str) -> Features:
    """`pictures`: video or image.

    Raises:
        DatasetError: two arrays or cameras would be one feature.
    """
    arrays = [key for key in store.keys if key not in {f"images_{name}" for name in store.cameras}]
    numbers = {key: NAMES.get(key, _feature(key)) for key in arrays}
    cameras = {name: f"observation.images.{name.replace('/', '_')}" for name in store.cameras}
    seen: dict[str, str] = {}
    for key, feature in [*numbers.items(), *((f"camera {n}", f) for n, f in cameras.items())]:
        if feature in seen:
            found = f"{seen[feature]} and {key} as one feature, {feature}"
            raise mismatch(store.path, found, "names that differ in more than /")
        seen[feature] = key
    told = {
        feature: {
            "dtype": str(store.read(key, 0, 1).dtype),
            "shape": list(store.shape(key)) or [1],
            "names": _names(parts_of(store.attrs, key)) if key in NAMES else None,
        }
        for key, feature in numbers.items()
    }
    for name, (height, width) in camera_sizes(store, store.cameras).items():
        told[cameras[name]] = {
            "dtype": pictures,
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
        }
    for name in AUTOMATIC:
        told[name] = {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
    return Features(numbers, cameras, told)


def _names(parts: list[dict[str, Any]]) -> list[str]:
    """A name for each number, `delta_` in front of those that are steps."""
    steps = [part["kind"] == "delta" or part.get("relative") for part in parts]
    return [
        f"delta_{name}" if step else name
        for part, step in zip(parts, steps, strict=True)
        for name in number_names([part])
    ]


def _feature(key: str) -> str:
    """LeRobot's own columns are called as it likes, and no feature has a / in its name."""
    return f"recorded.{key}" if key in AUTOMATIC else key.replace("/", "_")
