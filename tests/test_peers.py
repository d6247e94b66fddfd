"""The pipe between our evaluator and a policy in another environment; no peer is installed here."""

import io
import json
import sys
import textwrap

import numpy as np
import pytest

from benchmarks.peers import peer
from benchmarks.peers.demos import as_expert
from benchmarks.peers.evaluate import PipedPlanner
from s2robot.common.errors import UserError
from s2robot.common.paths import shipped_demos
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import CubePickConfig
from s2robot.evaluation.rollouts import World

# A peer that tells what it was shown: the seed, its steps, the top left and bottom right pixel of each camera, the state.
FAKE = textwrap.dedent("""
    import numpy as np
    from benchmarks.peers.peer import serve
    print("what robomimic says when it is imported", flush=True)

    class Fake:
        about = "fake"
        def reset(self, seed):
            self.seed, self.steps = seed, 0
        def act(self, images, proprio):
            self.steps += 1
            print("a peer's own words")
            corners = [images[name][at][0] for name in ("left", "hand") for at in ((0, 0), (-1, -1))]
            return [self.seed, self.steps, *corners, proprio.sum(), 0]

    serve(Fake)
""")


@pytest.fixture
def planner():
    planner = PipedPlanner([sys.executable, "-c", FAKE])
    yield planner
    planner.process.stdin.close()
    assert planner.process.wait(10) == 0  # it ends with the pipe


def seen(value, count=2):
    """An observation as an evaluation has it; of its rows the last is the newest."""
    frame = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(1, 4, 4, 3) + value
    images = {"hand": np.repeat(frame, count, 0), "left": np.repeat(frame + 100, count, 0)}
    images["right"] = images["hand"]
    return {"images": images, "proprio": np.full((count, 8), value, np.float32), "count": 1}


def test_a_peer_acts_on_what_it_is_shown(planner):
    planner.reset({"seed": 60_001})
    assert planner.plan(seen(1)).tolist() == [[60_001, 1, 101, 146, 1, 46, 8, 0]]
    assert planner.plan(seen(2)).tolist() == [[60_001, 2, 102, 147, 2, 47, 16, 0]]
    planner.reset({"seed": 7})
    assert planner.plan(seen(0)).tolist() == [[7, 1, 100, 145, 0, 45, 0, 0]]
    spent = planner.spent()
    assert spent["actions"] == 3 and spent["act_s"] >= 0 and spent["act_cpu_s"] >= 0


def test_it_acts_in_our_world_and_leaves_a_record(planner):
    world = World(CubePickConfig(image_size=16, max_steps=2), planner)
    record, actions, costs = world.run(0, 60_000)
    assert (record["seed"], record["steps"], record["success"]) == (60_000, 2, False)
    assert actions[:, :2].tolist() == [[60_000, 1], [60_000, 2]]
    assert costs["actions"] == 2


def test_a_peer_that_ends_is_told_of_in_a_line():
    planner = PipedPlanner([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(UserError, match=r"^.*SystemExit\(3\)': ended with code 3, expected an answer$"):
        planner.reset({"seed": 0})


def test_messages_come_as_they_went():
    pipe = io.BytesIO()
    for message in ({"reset": 3}, {"action": np.arange(8, dtype=np.float32)}):
        peer.write(pipe, message)
    whole = pipe.getvalue()
    pipe.seek(0)
    assert peer.read(pipe) == {"reset": 3}
    assert peer.read(pipe)["action"].tolist() == list(range(8))
    assert peer.read(pipe) is None  # the end
    for cut in (2, 7):  # within the length, within the message
        assert peer.read(io.BytesIO(whole[:cut])) is None


def test_a_peer_imitates_what_the_picker_would_have_done():
    arrays = EpisodeStore.open(shipped_demos("xarm7_cube")).episode(0)
    theirs = as_expert(arrays)
    pushed = arrays["perturbed"].astype(bool)
    assert 0 < pushed.sum() < len(pushed)
    np.testing.assert_array_equal(theirs["action"][~pushed], arrays["action"][~pushed])
    np.testing.assert_array_equal(theirs["action"][pushed], arrays["expert"][pushed, 0])
    assert set(arrays) - set(theirs) == {"expert", "perturbed", "imitate"}
    assert theirs["state"] is arrays["state"]


def test_the_clock_counts_batches(capsys):
    peer.clock(iter(range(6)), 60)
    row = json.loads(capsys.readouterr().out)
    assert row["batches"] == 4 and row["per_wall_s"] > 0 and row["peak_mb"] > 1
