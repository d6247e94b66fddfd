"""Checks of a run for benchmarks/faults.py: commands outside limits or past the filter, and a store that changed."""

import hashlib
from pathlib import Path

import numpy as np

from s2robot.demos.store import EpisodeStore
from s2robot.envs.real.arms.driver import ArmLimits
from s2robot.envs.real.arms.geometry import ArmPoints


def unsafe(commands: list[dict], start: np.ndarray, limits: ArmLimits, points: ArmPoints) -> int:
    """How many of the motion commands on the wire were outside limits: what the box flags, joints out of range, a
    step faster than the joints may be, a watched point outside the workspace. Floats of 32 bits: 1e-5 is allowed.
    """
    if not commands:
        return 0
    q = np.array([c["values"][:7] for c in commands])  # (N, 7)
    bad = np.array([c["unsafe"] for c in commands])
    with np.errstate(invalid="ignore"):
        bad |= ~((q >= np.array(limits.q_min)) & (q <= np.array(limits.q_max))).all(1)
        steps = np.abs(np.diff(q, axis=0, prepend=start[None]))
        bad |= ~(steps <= np.array(limits.dq_max) / limits.rate_hz + 1e-5).all(1)
    places = points.along(np.nan_to_num(q))  # (N, P, 3)
    box, radius = np.array(limits.box), points.radius[:, None]
    inside = (places >= box[:, 0] + radius - 1e-5) & (places <= box[:, 1] - radius + 1e-5)
    bad |= ~(inside.all(2) | ~points.in_box).all(1)
    bad |= ~(places[..., 2] >= limits.table_z + limits.table_clearance + points.radius - 1e-5).all(1)
    return int(bad.sum())


def unfiltered(commands: list[dict], passed: list[np.ndarray]) -> int:
    """How many of the motion commands on the wire are not, in order, joints (7,) that the filter has let through."""
    at = bad = 0
    for command in commands:
        q = np.asarray(command["values"][:7], np.float32)
        rest = range(at, len(passed))
        found = next((i for i in rest if np.array_equal(q, passed[i].astype(np.float32))), None)
        at, bad = (at, bad + 1) if found is None else (found + 1, bad)
    return bad


def digest(path: Path, episodes: int | None = None) -> tuple[int, str]:
    """How many episodes a store holds, and a hash of all bytes of the first `episodes` (None: of all)."""
    store, found = EpisodeStore.open(path), hashlib.sha256()
    count = len(store.episode_ends) if episodes is None else episodes
    for key in sorted(store.keys) if count else ():
        found.update(key.encode() + np.asarray(store[key][: int(store.episode_ends[count - 1])]).tobytes())
    return len(store.episode_ends), found.hexdigest()


def intact(path: Path, before: tuple[int, str], grown: bool) -> bool:
    """Whether the store opens and its earlier episodes are the same bytes, with one more if one was completed."""
    try:
        after = digest(path, before[0])
    except Exception:
        return False
    return after == (before[0] + grown, before[1])
