"""`train.from`: weights and normalisation of another policy, and who is refused."""

import pytest
import torch

from s2robot.core.errors import UserError
from s2robot.policies import load_checkpoint
from s2robot.training.train import train
from tests.s2robot.training.small import CONTRACT, make_data, make_settings, make_spec


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("start") / "d.zarr")


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("first")
    return str(
        train(make_settings(seed=3), make_spec(), *data, CONTRACT, out, episodes=data[0].split(0.25, 3, 4))
    )


def test_a_training_goes_on_from_weights_and_normalisation(data, first, tmp_path):
    settings = make_settings(from_=first, steps=1, lr=1e-9, weight_decay=0.0)
    spec = make_spec(execute=1, proprio_noise=0.1)  # no weight depends on these
    folder = train(settings, spec, *data, CONTRACT, tmp_path)
    before, after = (load_checkpoint(f)[0] for f in (first, folder))
    for name, value in after.state_dict().items():
        torch.testing.assert_close(value, before.state_dict()[name], rtol=0, atol=1e-6)
    assert torch.equal(before.normaliser.target.scale, after.normaliser.target.scale)
    assert after.spec.execute == 1


def test_a_state_belongs_to_what_it_began_from(data, first, tmp_path):
    train(make_settings(from_=first, steps=5), make_spec(), *data, CONTRACT, tmp_path)
    with pytest.raises(UserError, match="another run.*train.from"):
        train(make_settings(steps=5), make_spec(), *data, CONTRACT, tmp_path)


@pytest.mark.parametrize(
    ("changes", "contract", "words"),
    [
        ({"chunk": 5}, {}, "made with policy.chunk 4, this run has 5"),
        ({"members": 2}, {}, "policy.members 1, this run has 2"),
        ({"pooling": {"kind": "mean"}}, {}, "policy.pooling.kind spatial_softmax, this run has mean"),
        (
            {"cameras": ["left", "hand"]},
            {"cameras": ["left", "hand"]},
            r"policy.cameras \['hand', 'left'\]",
        ),
        (
            {},
            {"encoder": {"name": "other", "fingerprint": "f"}},
            "was trained on encoder random e.* is other f",
        ),
        ({}, {"robot": "panda"}, "was trained for robot 'xarm7', given is 'panda'"),
    ],
)
def test_another_policy_is_refused(data, first, tmp_path, changes, contract, words):
    with pytest.raises(UserError, match=f"^train.from: {first}: .*{words}"):
        train(make_settings(from_=first), make_spec(**changes), *data, CONTRACT | contract, tmp_path)


def test_no_checkpoint_is_one_line(data, tmp_path):
    with pytest.raises(UserError, match="^train.from: nowhere: .*no such folder$"):
        train(make_settings(from_="nowhere"), make_spec(), *data, CONTRACT, tmp_path)
