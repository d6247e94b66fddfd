"""Scenes for pre-training: the same seed gives the same frames, and frames are never overwritten."""

import json

import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.pretraining import scenes
from s2robot.pretraining.scenes import ScenesSettings, make_scenes, render_scenes
from tests.inline import do_inline


def test_frames_are_decided_by_the_seed_and_differ():
    frames = render_scenes(0, ("cube_pick",), ("xarm7",), 64, 0.5)
    assert frames.shape == (60, 64, 64, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames, render_scenes(0, ("cube_pick",), ("xarm7",), 64, 0.5))
    assert len({frame.tobytes() for frame in frames}) == 60
    assert frames.reshape(60, -1).std(1).min() > 5  # no empty image


def test_looks_vary_only_when_asked():
    """Between two frames of one camera, a wild look changes far more pixels than the task's own does."""
    apart = {}
    for vary in (0.0, 1.0):
        frames = render_scenes(2, ("cube_pick",), ("xarm7",), 32, vary)[1::3].astype(
            float
        )  # of the left camera
        apart[vary] = np.abs(np.diff(frames, axis=0)).mean()
    assert apart[1.0] > 2 * apart[0.0]


def test_tasks_take_turns_and_the_end_of_an_episode_is_shown(monkeypatch):
    reached, moments = [], scenes._moments

    def watched(env, seed):
        for _ in moments(env, seed):
            reached.append((env.settings.task, env.is_success))
            yield

    monkeypatch.setattr(scenes, "_moments", watched)
    frames = render_scenes(1, ("cube_pick", "stack"), ("xarm7",), 32, 0.0)
    assert len({frame.tobytes() for frame in frames}) == 60
    assert any(success for _, success in reached) and all("stack" in task.lower() for task, _ in reached)


def test_a_bank_of_both_arms_is_written_once(tmp_path, monkeypatch):
    do_inline(monkeypatch)
    settings = ScenesSettings(frames=90, image_size=32, workers=1)
    calls = []
    path = make_scenes(settings, tmp_path, lambda *done: calls.append(done))
    bank = np.load(path)
    assert bank.shape == (120, 32, 32, 3) and calls == [(1, 2), (2, 2)]  # whole episodes of 60 frames
    assert np.array_equal(bank[60:], render_scenes(1, ("cube_pick",), ("xarm7", "panda"), 32, 0.6))
    assert json.loads((tmp_path / "meta.json").read_text()) == {
        "tasks": ["cube_pick"], "robots": ["xarm7", "panda"], "frames": 90, "image_size": 32, "vary": 0.6, "seed": 0,
        "workers": 1,
    }  # fmt: skip
    assert not list(tmp_path.glob("*.part*"))
    with pytest.raises(UserError, match="frames.npy: already there; remove it or choose another out"):
        make_scenes(settings, tmp_path)
    assert np.array_equal(bank, np.load(path))
