"""Where the episodes of a dataset began."""

from typing import Any

from s2robot.demos.store import EpisodeStore
from s2robot.envs.task_settings import TaskSettings
from s2robot.envs.tasks import settings_class_or_base


def task_of(store: EpisodeStore) -> type[TaskSettings]:
    """What is known of a dataset's task."""
    return settings_class_or_base(store.attrs["env_config"].get("task"))


def starts(store: EpisodeStore) -> list[dict[str, Any]]:
    """What a dataset holds of the start of each episode: its first step, and its layout where one is kept.

    ``task_of(store).layout_of`` makes numbers by name of it.
    """
    keys = [key for key in store.keys if not key.startswith("images_")]
    names = store.attrs.get("layout_names", [])
    layouts = store.meta("layout").tolist() if "layout" in store.meta_keys else [[]] * len(store)
    firsts = (store.episode_slice(i).start for i in range(len(store)))
    return [
        {"layout": dict(zip(names, layout, strict=True)), **{k: store.read(k, at, at + 1)[0] for k in keys}}
        for at, layout in zip(firsts, layouts, strict=True)
    ]
