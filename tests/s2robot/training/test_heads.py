"""Every head in a training: a killed run goes on exactly, and what is chosen on the command line is what is built."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from s2robot.common.paths import configs_dir
from s2robot.policies import ChunkPolicy, PolicySpec
from s2robot.policies.heads import HEADS


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_chosen_by_name(kind):
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", [f"policy/head={kind}", "policy=mvp_mlp"]))["policy"]
    sizes = {"cameras": ("hand",), "dim": 8, "tokens": 4}
    policy = ChunkPolicy(PolicySpec.from_dict(config | sizes))
    assert type(policy.network.head) is HEADS[kind][1]
    assert config["head"] == policy.spec.head.model_dump() == HEADS[kind][0]().model_dump()
