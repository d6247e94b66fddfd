"""The policy of a deployment, as far as its members may disagree."""

import time
from contextlib import ExitStack

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from s2robot.core.errors import UserError
from s2robot.core.files import configs_dir
from s2robot.deployment.policy import make_policy
from s2robot.deployment.settings import Bench, PolicySettings, read_bench, read_policy
from s2robot.serving.remote import PolicyLost


def settings(checkpoint, *overrides) -> tuple[PolicySettings, Bench]:
    words = [f"checkpoint='{checkpoint}'", "bridge=emulator", "policy.threads=1", "run_dir=none", *overrides]
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        cfg = compose("deploy", words)
    return read_policy(cfg), read_bench(cfg)


def made(checkpoint, *overrides):
    with ExitStack() as stack:
        return make_policy(*settings(checkpoint, *overrides), stack)


@pytest.fixture(scope="module")
def pair(save_untrained, tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("pair") / "checkpoint", members=2)


@pytest.fixture
def look():
    rng = np.random.default_rng(0)
    return lambda: {
        "images": {name: rng.integers(0, 256, (64, 64, 3), np.uint8) for name in ("hand", "left")},
        "proprio": np.zeros(8, np.float32),
    }


def test_an_unsure_plan_is_not_gone_on_with(pair, look):
    first, second = look(), look()
    sure, unsure = made(pair), made(pair, "bridge.watchdog.disagreement=1e-9")
    for policy in (sure, unsure):
        policy.act(first)
    assert sure.actor.disagreement == unsure.actor.disagreement > 1e-9
    plan = made(pair)
    np.testing.assert_array_equal(unsure.act(second), plan.act(second))  # a plan of what is seen now
    assert not np.array_equal(sure.act(second), plan.act(second))
    assert sure.actor.mean_disagreement == pytest.approx(sure.actor.disagreement)  # one plan so far
    sure.actor.reset()
    assert sure.actor.mean_disagreement is None and sure.actor.disagreement == 0


def test_a_limit_needs_members_in_this_process(slow_policy, pair):
    limit = "bridge.watchdog.disagreement=0.05"
    with pytest.raises(UserError, match="^bridge.watchdog.disagreement: expected null for a policy of one"):
        made(slow_policy, limit)
    source, bench = settings(pair, limit)
    served = source.replace(checkpoint=None, url="ws://nowhere:1")
    with pytest.raises(UserError, match="^bridge.watchdog.disagreement: expected null with policy.url"):
        make_policy(served, bench, ExitStack())


def test_a_policy_of_other_actions_is_refused_before_the_arm_is_looked_for(save_untrained, tmp_path):
    gripper = {"name": "gripper", "size": 1, "kind": "binary"}
    parts = [{"name": "joints", "size": 7, "kind": "absolute"}, gripper]
    checkpoint = save_untrained(tmp_path / "c", {"action_parts": parts}, action_parts=parts)
    words = r"^policy: actions: the policy's are joints \(7 absolute\), gripper \(1 binary\), the arm's joints \(7 delta\)"
    with pytest.raises(UserError, match=words):
        made(checkpoint)


def test_a_lost_answer_comes_after_the_loop_has_held_whatever_the_rate(monkeypatch):
    lost = PolicyLost("gone")

    class Remote:
        contract, image_size = {"rate_hz": 2}, 64

        def __init__(self, *_):
            self.plan = self.reset = self.close = lambda: None

        def act(self, observation):
            raise lost

    monkeypatch.setattr("s2robot.serving.remote.RemotePolicy", Remote)
    source, bench = settings("x", "checkpoint=null", "policy.url=ws://nowhere:1")
    with ExitStack() as stack:
        policy = make_policy(source, bench, stack)
        begin = time.monotonic()
        with pytest.raises(PolicyLost):
            policy.act({})
    period = 1 / (2 * bench.bridge.speed)
    assert time.monotonic() - begin > period + bench.bridge.watchdog.policy_hold
