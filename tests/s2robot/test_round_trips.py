"""What a policy learns from our episodes, and from the same after a journey through another format: the same weights."""

import pytest

from s2robot import cli
from s2robot.demos.store import EpisodeStore

pytestmark = pytest.mark.slow  # it draws simulated demos anew for each format

JOURNEYS = {
    "robomimic": ("out.hdf5",),
    "diffusion_policy": ("out.zarr.zip",),
    "lerobot": ("out", "to=lerobot", "pictures=png"),
}


@pytest.fixture(scope="module")
def trained(tiny_encoder, tmp_path_factory):
    """Train on a data set; the folder of the checkpoint."""
    home = tmp_path_factory.mktemp("runs")

    def train(data):
        out = home / str(len(list(home.iterdir())))
        assert cli.main([
            "train", f"demos.path={data}", f"encoder.checkpoint={tiny_encoder}", "train.steps=3", "train.batch_size=4",
            "policy.members=1", "policy.network.hidden=[16]", f"hydra.run.dir={out}",
        ]) == 0  # fmt: skip
        return out / "checkpoint"

    return train


@pytest.fixture(scope="module")
def first(trained, recorded):
    return trained(recorded)


@pytest.mark.parametrize("journey", JOURNEYS.values(), ids=JOURNEYS)
def test_the_same_policy_comes_of_it(tmp_path, recorded, trained, first, journey):
    assert EpisodeStore.open(recorded).attrs["kind"] == "states"
    name, *more = journey
    words = [f"data={recorded}", f"out={tmp_path / name}", f"hydra.run.dir={tmp_path / 'run'}"]
    assert cli.main(["convert", *words, *more, "image_size=64"]) == 0  # rendered at the encoder's size
    second = trained(tmp_path / name)
    assert (second / "policy.safetensors").read_bytes() == (first / "policy.safetensors").read_bytes()
