"""LeRobot's own normalisation, batching and device placement."""

from typing import Any

from lerobot.processor import make_default_pre_post_processors


def make_s2robot_pre_post_processors(config: Any, dataset_stats: Any = None) -> tuple[Any, Any]:
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
