"""Export: choice of format, image size, joint targets instead of deltas."""

import errno
from pathlib import Path

import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.core.files import shipped_demos
from s2robot.demos.formats.convert import convert
from s2robot.demos.formats.export import ModifiedStore, format_for
from s2robot.demos.formats.source import Choice
from s2robot.demos.lineage import episode_keys
from s2robot.demos.replay import world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.envs.tasks import make, settings_of
from tests.demos.formats import made
from tests.demos.formats.made import NAMES, converted, written
from tests.demos.test_store import IMAGES, failing_put

ABSOLUTE = {"image_codec": "png", "actions": "absolute", "action_range": "data"}


def test_format_follows_the_to_setting_or_the_file_name():
    assert format_for(Path("a.zarr"), None) is None and format_for(Path("a.zarr"), "lerobot") == "lerobot"
    assert format_for(Path("a.hdf5"), None) == "robomimic"
    assert format_for(Path("a.b.zarr.zip"), None) == "diffusion_policy"
    with pytest.raises(UserError, match="^to: "):
        format_for(Path("a"), "rlds")


def test_conversion_that_fills_the_disk_says_that_nothing_was_written(tmp_path, monkeypatch):
    made.robomimic(tmp_path / "in.hdf5")
    failing_put(monkeypatch, 30, errno.ENOSPC)
    with pytest.raises(UserError, match="^.*out.zarr: the disk is full .*, nothing was written$"):
        convert(tmp_path / "in.hdf5", tmp_path / "out.zarr")


def test_size_of_rendered_images(tmp_path):
    first = EpisodeStore.open(shipped_demos("xarm7_cube"))
    with EpisodeStore.create(tmp_path / "one.zarr", first.attrs) as one:
        one.append({key: rows[:3] for key, rows in first.episode(0).items()}, {"seed": 500})
    back = converted(written(one, tmp_path / "out.zarr", image_size=12))
    assert back.shape("images_left") == (12, 12, 3)
    assert back.attrs["camera_geometry"]["left"]["size"] == [12, 12]
    task = make(settings_of(first.attrs["env_config"], image_size=12))
    task.set_state(first["state"][2])
    np.testing.assert_array_equal(back["images_left"][2], task.render_cameras()["left"])
    with pytest.raises(UserError, match="image_size: expected null.* 16 x 24 px"):
        written(made.store(tmp_path / "in.zarr"), tmp_path / "none.zarr", image_size=12)
    with pytest.raises(UserError, match="^actions: expected recorded"):  # this store has no joint targets
        written(made.store(tmp_path / "odd.zarr"), tmp_path / "out", **ABSOLUTE)


@pytest.mark.parametrize("name", NAMES)
def test_absolute_targets_round_trip_and_identify_the_episode(tmp_path, name):
    """On data of a real arm, without simulator states."""
    rng = np.random.default_rng(0)
    with EpisodeStore.create(tmp_path / "in.zarr", IMAGES | {"source": "teleop, arm"}) as store:
        for n in (5, 7):
            deltas = np.append(rng.normal(0, 0.1, (n, 7)), rng.integers(0, 2, (n, 1)), 1).astype("f4")
            data = {"action": deltas, "action_sent": deltas, "proprio": rng.normal(size=(n, 8)).astype("f4")}
            data |= {"expert": np.stack([deltas] * 3, 1), "imitate": np.ones(n, "u1")}
            store.append({**data, "images_hand": np.zeros((n, 8, 8, 3), "u1")}, {"seed": n})
    if name == "out":  # LeRobot; labels of other columns are no labels of the chosen ones
        choice = Choice(action=("action[1:8,0]",), action_kind="delta")
        assert "expert" not in converted(written(store, tmp_path / "all"), choice, "cut.zarr").keys
    back = converted(written(store, tmp_path / name, **ABSOLUTE))
    assert [part["kind"] for part in back.attrs["action_parts"]] == ["absolute", "binary"]
    assert back.attrs["action_frame"] == "parts" and {*back.keys} == {"action", "proprio", "images_hand"}
    for i in range(2):
        original, imported = store.episode(i), back.episode(i)
        targets = original["proprio"][0, :7] + original["action"][:, :7].astype("f8").cumsum(0)
        np.testing.assert_allclose(imported["action"][:, :7], targets, atol=1e-6)
        np.testing.assert_array_equal(imported["action"][:, 7], original["action"][:, 7])
        np.testing.assert_array_equal(imported["proprio"], original["proprio"])
        assert {*episode_keys(back)[i]} & {*episode_keys(store)[i]}


def test_targets_equal_the_simulated_arms_commands():
    demos = EpisodeStore.open(shipped_demos("xarm7_cube"))
    targets = ModifiedStore(demos.path, None, True)["action"]
    env = make(world_of_demos(demos), draw=False)
    for episode in (0, 3):
        rows = demos.episode_slice(episode)
        env.reset(seed=int(demos.meta("seed")[episode]))
        env.set_state(demos["state"][rows.start])
        for row in range(rows.start, rows.start + 12):
            env.apply(demos["action"][row])
            np.testing.assert_allclose(targets[row, :7], env.commanded, atol=1e-6)
