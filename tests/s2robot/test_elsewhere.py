"""Demos that are of no simulated task of ours: an encoder is chosen, some are held out, and times are in seconds."""

import pytest

from s2robot.cli import main
from s2robot.policies import load_checkpoint
from tests.s2robot.pictures import write_noise


def write(path, episodes: int, **source):
    return write_noise(
        path, {"top": (32, 32)}, [9] * episodes, robot="koch", rate_hz=20, env_version="", **source
    )


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "koch.zarr"
    return write(path, 12, source={"format": "lerobot", "name": "koch"})


def words(demos, out, *more):
    return [
        f"demos.path={demos}", f"hydra.run.dir={out}", f"features.cache={out.parent / 'cache'}", "features.workers=1",
        "train.batch_size=8", "policy.members=1", "policy.network.hidden=[8]", "policy.pooling.keypoints=2", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("verb", ["train", "encode"])
def test_an_encoder_has_to_be_chosen_before_anything_is_encoded(demos, tmp_path, verb, capsys):
    given = words(demos, tmp_path / "run", "train.steps=1")
    assert main([verb, *(given if verb == "train" else given[:4])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    names = ("efficientnet_lite0", "dinov2_s", "vits-mae-in", "mvp-tiny")
    assert all(f"encoder={name}" in line for name in names)
    assert not list(tmp_path.iterdir())


def test_a_tenth_is_held_out_and_times_are_steps_of_the_demos(demos, tiny_encoder, tmp_path, capsys):
    out, encoder = tmp_path / "run", f"encoder.checkpoint={tiny_encoder}"
    more = [encoder, "train.epochs=0.5", "policy.chunk=0.4s", "policy.execute=.2s"]
    assert main(["train", *words(demos, out, *more)]) == 0
    policy, contract = load_checkpoint(out / "checkpoint")
    assert (policy.spec.chunk, policy.spec.execute) == (8, 4)  # at 20 Hz
    assert (contract["training"]["demos"], contract["training"]["held_out"]) == (11, 1)
    assert contract["training"]["step"] == -(-11 * 9 // 16)
    given = [f"checkpoint={out / 'checkpoint'}", f"hydra.run.dir={tmp_path / 'v'}"]
    assert main(["evaluate", "evaluate=recorded", *given, f"features.cache={tmp_path / 'cache'}"]) == 0
    capsys.readouterr()
    for wrong, key in (
        (["train.epochs=2", "train.steps=5"], "train.epochs"),
        (["train.epochs=0"], "train.epochs"),
        (["policy.chunk=0.01s"], "policy.chunk"),
        (["policy.chunk=soon"], "policy.chunk"),
    ):
        assert main(["train", *words(demos, tmp_path / "no", encoder, *wrong)]) == 2
        assert f" {key}: " in capsys.readouterr().err


@pytest.mark.parametrize("source, episodes, held_out", [("emulator", 12, 0), ("arm", 12, 1), ("arm", 9, 0)])
def test_of_few_and_of_rehearsals_none_are_held_out(tiny_encoder, tmp_path, source, episodes, held_out):
    demos = write(tmp_path / "d.zarr", episodes, source=source)
    given = words(demos, tmp_path / "run", f"encoder.checkpoint={tiny_encoder}", "train.steps=1")
    assert main(["train", *given]) == 0
    assert load_checkpoint(tmp_path / "run/checkpoint")[1]["training"]["held_out"] == held_out
