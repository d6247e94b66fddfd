"""Joint deltas go out as joint targets: those that the arm was sent to."""

import numpy as np
import pytest

from s2robot.core.files import shipped_demos
from s2robot.demos.errors import DatasetError
from s2robot.demos.formats.convert import convert
from s2robot.demos.formats.export import ExportSettings, ModifiedStore, export
from s2robot.demos.lineage import episode_keys
from s2robot.demos.replay import world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.envs.tasks import make
from tests.demos.formats import made

ABSOLUTE = ExportSettings(pictures="png", actions="absolute", action_range="data")


@pytest.fixture
def store(tmp_path):
    """Two episodes of an arm, without a simulator's state."""
    rng = np.random.default_rng(0)
    about = {
        "robot": "xarm7", "joint_names": [f"joint{i}" for i in range(7)], "rate_hz": 10, "seed": 0, "cameras": ["hand"],
        "camera_geometry": {}, "action_frame": "joint_delta_commanded", "env_version": "CubePick-v0", "env_config": {},
        "kind": "images", "source": "teleop, arm",
    }  # fmt: skip
    with EpisodeStore.create(tmp_path / "in.zarr", about) as store:
        for n in (5, 7):
            deltas = np.append(rng.normal(0, 0.1, (n, 7)), rng.integers(0, 2, (n, 1)), 1).astype("f4")
            own = {"action": deltas, "action_sent": deltas, "proprio": rng.normal(size=(n, 8)).astype("f4")}
            expert = np.stack([np.concatenate([deltas[t:], deltas[:t]])[:3] for t in range(n)])
            store.append({**own, "expert": expert, "images_hand": np.zeros((n, 8, 8, 3), "u1")}, {"seed": n})
    return store


@pytest.mark.parametrize(
    "to, name",
    [
        ("lerobot", "out"),
        ("robomimic", "out.hdf5"),
        ("diffusion_policy", "out.zarr"),
    ],
)
def test_targets_come_back_and_the_episode_is_known(tmp_path, store, to, name):
    export(store, tmp_path / name, to, ABSOLUTE)
    convert(tmp_path / name, tmp_path / "back.zarr")
    back = EpisodeStore.open(tmp_path / "back.zarr")
    assert [part["kind"] for part in back.attrs["action_parts"]] == ["absolute", "binary"]
    assert back.attrs["action_frame"] == "parts" and "action_sent" not in back.keys
    for i in range(2):
        was, now = store.episode(i), back.episode(i)
        targets = was["proprio"][0, :7] + was["action"][:, :7].astype("f8").cumsum(0)
        np.testing.assert_allclose(now["action"][:, :7], targets, atol=1e-6)
        np.testing.assert_array_equal(now["action"][:, 7], was["action"][:, 7])
        np.testing.assert_array_equal(now["proprio"], was["proprio"])
        # the expert's chunk from step t begins where the action of step t does
        np.testing.assert_allclose(now["expert"][:, 0], now["action"], atol=1e-6)
        np.testing.assert_allclose(now["expert"][:-2, 2], now["action"][2:], atol=1e-6)
        assert {*episode_keys(back)[i]} & {*episode_keys(store)[i]}


def test_targets_are_what_the_simulated_arm_was_sent_to():
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


def test_other_actions_are_refused(tmp_path):
    odd = made.store(tmp_path / "odd.zarr")
    with pytest.raises(
        DatasetError, match="actions: found absolute for .*odd.zarr, whose actions are joints"
    ):
        export(odd, tmp_path / "out", "lerobot", ABSOLUTE)
