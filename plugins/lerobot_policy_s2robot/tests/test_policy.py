"""Tests of the policy; run `pytest plugins/lerobot_policy_s2robot/tests` in LeRobot's environment."""

import numpy as np
import pytest

pytest.importorskip("lerobot")
torch = pytest.importorskip("torch")

from lerobot.configs import FeatureType, PolicyFeature  # noqa: E402
from lerobot.policies.factory import get_policy_class, make_pre_post_processors  # noqa: E402
from lerobot.utils.import_utils import register_third_party_plugins  # noqa: E402

register_third_party_plugins()

SIDE, STATE, ACTION, B = 64, 3, 2, 4


def features():
    image, state, action = (3, SIDE, SIDE), (STATE,), (ACTION,)
    inputs = {"observation.images.top": PolicyFeature(FeatureType.VISUAL, image)}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, state)
    return {
        "input_features": inputs,
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, action)},
    }


def policy(head, **changes):
    from lerobot_policy_s2robot import S2robotConfig

    config = S2robotConfig(
        head=head, device="cpu", hidden=[32], chunk_size=4, n_action_steps=2, **features(), **changes
    )
    return get_policy_class("s2robot")(config)


def batch(seed=0):
    torch.manual_seed(seed)
    data = {
        "observation.images.top": torch.rand(B, 3, SIDE, SIDE),
        "observation.state": torch.randn(B, STATE),
    }
    return data | {"action": torch.randn(B, 4, ACTION), "action_is_pad": torch.zeros(B, 4, dtype=torch.bool)}


@pytest.mark.parametrize("head", ["regression", "flow", "diffusion", "gmm", "act", "mip"])
def test_each_head_learns_and_acts(head):
    model, data = policy(head), batch()
    optimiser = torch.optim.Adam(model.get_optim_params(), 3e-3)
    losses = []
    for _ in range(30):
        loss, scalars = model.train().forward(data)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) and all(np.isfinite(list(scalars.values())))
    model.reset()
    first = model.select_action(data)
    assert first.shape == (B, ACTION) and len(model._action_queue) == 1


def test_it_is_saved_without_the_frozen_encoder_and_acts_alike_when_loaded(tmp_path):
    model, data = policy("regression"), batch()
    model.train().forward(data)
    model.eval().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 4e6
    again = get_policy_class("s2robot").from_pretrained(tmp_path)
    assert torch.equal(again.predict_action_chunk(data), model.predict_action_chunk(data))
    before, after = make_pre_post_processors(model.config)
    assert before is not None and after is not None


def test_padding_does_not_count_and_a_wrong_setting_is_named():
    model, data = policy("regression").eval(), batch()
    data["action_is_pad"][:, 2:] = True
    loss, _ = model.forward(data)
    data["action"][:, 2:] += 100
    assert torch.allclose(model.forward(data)[0], loss)
    with pytest.raises(ValueError, match="n_action_steps: expected 1 to chunk_size=4"):
        policy("regression").config.__class__(chunk_size=4, n_action_steps=5, device="cpu")
