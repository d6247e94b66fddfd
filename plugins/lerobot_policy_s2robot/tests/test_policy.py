"""The policy in LeRobot's own environment: `pytest plugins/lerobot_policy_s2robot/tests` there."""

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
    found = {
        "observation.images.top": torch.rand(B, 3, SIDE, SIDE),
        "observation.state": torch.randn(B, STATE),
    }
    return found | {"action": torch.randn(B, 4, ACTION), "action_is_pad": torch.zeros(B, 4, dtype=torch.bool)}


@pytest.mark.parametrize("head", ["regression", "flow", "diffusion", "gmm", "act", "mip"])
def test_each_head_learns_and_acts(head):
    made, seen = policy(head), batch()
    optimiser = torch.optim.Adam(made.get_optim_params(), 3e-3)
    losses = []
    for _ in range(30):
        loss, scalars = made.train().forward(seen)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) and all(np.isfinite(list(scalars.values())))
    made.reset()
    first = made.select_action(seen)
    assert first.shape == (B, ACTION) and len(made._queue) == 1


def test_it_is_saved_without_the_frozen_encoder_and_acts_alike_when_loaded(tmp_path):
    made, seen = policy("regression"), batch()
    made.train().forward(seen)
    made.eval().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 4e6
    again = get_policy_class("s2robot").from_pretrained(tmp_path)
    assert torch.equal(again.predict_action_chunk(seen), made.predict_action_chunk(seen))
    before, after = make_pre_post_processors(made.config)
    assert before is not None and after is not None


def test_padding_does_not_count_and_a_wrong_setting_is_named():
    made, seen = policy("regression").eval(), batch()
    seen["action_is_pad"][:, 2:] = True
    loss, _ = made.forward(seen)
    seen["action"][:, 2:] += 100
    assert torch.allclose(made.forward(seen)[0], loss)
    with pytest.raises(ValueError, match="n_action_steps: expected 1 to chunk_size=4"):
        policy("regression").config.__class__(chunk_size=4, n_action_steps=5, device="cpu")
