"""Policies of LeRobot datasets on LeRobot robots: `s2robot deploy robot=lerobot` with a fake robot."""

import json

import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.deployment import deploy, preflight
from s2robot.deployment.policy import Policy, by_name
from s2robot.envs.cube_config import ACTION_FRAME
from s2robot.envs.real.arms import lerobot
from s2robot.envs.real.arms.lerobot import LeRobotArm
from s2robot.envs.real.cameras.camera import fitted
from tests.configs import composed
from tests.envs.real.arms.test_lerobot import KEYS, Robot, about
from tests.errors import refuses

DATASET_KEYS = KEYS[::-1]  # in the dataset's order


def contract(names=DATASET_KEYS, kind="absolute"):
    parts = [{"name": "numbers", "size": len(names), "kind": kind, "names": list(names)}]
    joints = {"action_frame": "parts", "joint_names": list(names), "robot": "so101_follower"}
    return {"proprio_parts": parts, "action_parts": parts, **joints}


def test_values_are_translated_by_name_and_unit():
    arm = LeRobotArm(about(), about().limits())
    inputs = []
    act = lambda o: inputs.append(o["proprio"]) or np.arange(6.0)  # noqa: E731
    translated = by_name(Policy(act, None, contract(), 256, None, list, None), about(), arm)
    action = translated.act({"proprio": np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.25], np.float32)})
    np.testing.assert_allclose(inputs[0], [25, *np.degrees([0.5, 0.4, 0.3, 0.2, 0.1])], rtol=1e-6)
    np.testing.assert_allclose(action, [*np.radians([5, 4, 3, 2, 1]), 0.0])
    assert translated.absolute and translated.contract["action_frame"] == ACTION_FRAME


@pytest.mark.parametrize(
    ("wrong", "text"),
    [(contract([*DATASET_KEYS[:-1], "pan.pos"]), "proprio: expected the robot's shoulder_pan.*, got gripper.*, pan"),
     (contract(kind="delta"), "expected absolute values, got numbers")],
)  # fmt: skip
def test_other_joint_names_and_delta_actions_are_rejected(wrong, text):
    arm = LeRobotArm(about(), about().limits())
    refuses(text, by_name, Policy(np.zeros, None, wrong, 256, None, list, None), about(), arm)


def test_dry_run_with_the_robot_cameras(save_untrained, pictures, calm, tmp_path, monkeypatch, capsys):
    home = dict(zip(KEYS, [*np.degrees(about().start), 50.0], strict=True))
    rng = np.random.default_rng(0)
    frames = {name: rng.integers(0, 256, (72, 96, 3), np.uint8) for name in ("hand", "front")}
    monkeypatch.setattr(lerobot, "make_robot", lambda about: Robot(**home, **frames))
    own = contract()
    parts = {key: own[key] for key in ("action_parts", "proprio_parts")}
    checkpoint = save_untrained(tmp_path / "checkpoint", own, 10.0, action_dim=6, proprio_dim=6, **parts)
    words = ["robot=lerobot", "robot.type=fake", "robot.units=degrees", "robot.stop=hold", "dry_run_steps=2"]
    words += [f"checkpoint='{checkpoint}'", f"demos.path='{pictures}'", f"run_dir='{tmp_path}'", *calm]
    own = "hand.rotate=2", "left.kind=lerobot", "left.device=front"
    words += [f"bridge.cameras.{setting}" for setting in own]
    seen = []
    monkeypatch.setattr(preflight, "draw_views", lambda views, *_: seen.append(views))
    assert deploy.deploy(composed("deploy", *words)) == 0, capsys.readouterr().out
    refuses("pre-flight: 1 of", deploy.deploy, composed("deploy", *words, "bridge.cameras.left.device=left"))
    with pytest.raises(UserError, match="bridge.simulated: expected false with a policy of a LeRobot"):
        deploy.deploy(composed("deploy", *words, "bridge=simulated"))
    for name, image in (("hand", np.rot90(frames["hand"], 2)), ("left", frames["front"])):
        np.testing.assert_array_equal(seen[0][name], fitted(image, (64, 64)))
    shown = capsys.readouterr().out
    assert "left.device: expected a camera of the robot: front, hand, got left" in shown
    assert "warning stop: the joints hold" in shown
    assert len(json.loads((tmp_path / "dry_run.json").read_text())["joints"][0]) == 5
