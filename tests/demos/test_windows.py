"""Training windows, checked by hand and against a plain loop on random episodes."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2robot.core.errors import UserError
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import make_windows
from tests.demos.test_store import ATTRIBUTES


def store_of(path: Path, episodes: list[list[int]]) -> EpisodeStore:
    """Store episodes given as perturbation flags by step; each action is its row number."""
    first = 0
    with EpisodeStore.create(path, ATTRIBUTES) as store:
        for pushed in episodes:
            rows = np.arange(first, first + len(pushed), dtype=np.float32)
            first += len(pushed)
            pushed = np.array(pushed, np.uint8)
            store.append({"action": np.repeat(rows[:, None], 8, 1), "perturbed": pushed}, {"seed": 0})
    return EpisodeStore.open(path)


def chunks(windows) -> list[list[int]]:
    """Return the rows of the imitated actions."""
    assert windows.actions.shape[-1] == 8 and (windows.actions == windows.actions[..., :1]).all()
    return windows.actions[..., 0].astype(int).tolist()


def test_expert_chunks_extend_beyond_pushes_and_episode_ends(tmp_path):
    """The chunk of step t starts with 10 t; no window starts at a perturbed step or where `imitate` is 0."""

    def windows(path, labels="expert", **flags):
        expert = 10.0 * np.arange(4)[:, None] + np.arange(2)  # (T, K) of steps 0 to 3
        with EpisodeStore.create(tmp_path / path, ATTRIBUTES) as store:
            arrays = {"action": np.zeros((4, 8), np.float32), "perturbed": np.array([0, 1, 1, 0], np.uint8)}
            arrays["expert"] = np.repeat(expert[..., None], 8, 2).astype(np.float32)
            store.append(arrays | flags, {"seed": 0})
            made = make_windows(store, np.array([0]), 2, 3, labels)
        if labels == "recorded":
            return made.context.tolist(), made.action_pad.tolist()
        assert (made.action_pad == [False, False, True]).all()
        return made.context.tolist(), chunks(made)

    assert windows("a") == ([[0, 0], [2, 3]], [[0, 1, 1], [30, 31, 31]])
    imitated = {"imitate": np.array([0, 0, 1, 1], np.uint8)}
    assert windows("b", **imitated) == ([[1, 2], [2, 3]], [[20, 21, 21], [30, 31, 31]])
    end = [False, True, True]  # recorded chunks end before a push and at the end of the episode
    assert windows("c", "recorded", **imitated) == ([[0, 0], [2, 3]], [end, end])
    for episodes in ([0], []):
        with pytest.raises(UserError, match=f"step to imitate, got none in {len(episodes)} episodes"):
            make_windows(store_of(tmp_path / f"{episodes}", [[1, 1], [0]]), np.array(episodes, int), 1, 1)


flags = st.lists(st.integers(0, 1), min_size=1, max_size=9)


@settings(max_examples=20, deadline=None)
@given(
    episodes=st.lists(flags, min_size=1, max_size=4).filter(lambda e: any(0 in flags for flags in e)),
    context=st.integers(1, 5),
    chunk=st.integers(1, 6),
)
def test_windows_equal_a_plain_loop(episodes, context, chunk):
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(Path(folder) / "d.zarr", episodes)
        windows = make_windows(store, np.arange(len(episodes)), context, chunk)
    rows, first = [], 0
    for pushed in episodes:
        for t in range(len(pushed)):
            if pushed[t]:
                continue
            back = [t - context + 1 + j for j in range(context)]
            last = t
            while last + 1 < len(pushed) and not pushed[last + 1]:
                last += 1
            ahead = [t + j for j in range(chunk)]
            context_rows, pad = [first + max(b, 0) for b in back], [b < 0 for b in back]
            rows.append((context_rows, pad, [first + min(a, last) for a in ahead], [a > last for a in ahead]))
        first += len(pushed)
    actual = (windows.context.tolist(), windows.pad.tolist(), chunks(windows), windows.action_pad.tolist())
    assert [*zip(*actual, strict=True)] == rows and len(windows) == len(rows)
    assert windows.steps.tolist() == [context_rows[-1] for context_rows, *_ in rows]
