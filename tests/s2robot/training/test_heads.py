"""Every head in a training: a killed run goes on exactly, and what is chosen on the command line is what is built."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file

from s2robot import cli
from s2robot.common.paths import configs_dir
from s2robot.policies import ChunkPolicy, PolicySpec
from s2robot.policies.heads import HEADS
from s2robot.training.train import train
from tests.s2robot.training.small import CONTRACT, make_data, make_settings, make_spec

SMALL = {
    "regression": {},
    "mip": {"width": 16, "layers": 1, "dropout": 0.1},
    "flow": {"width": 8, "layers": 2, "dropout": 0.1, "denoiser": "unet"},
    "diffusion": {"width": 16, "layers": 1, "train_steps": 20},
    "gmm": {"components": 2},
    "act": {"width": 8, "layers": 1, "heads": 2, "style": 2, "draw": True},
}
SETTINGS = {"steps": 4, "batch_size": 8, "log_every": 2, "checkpoint_every": 2, "validation": 0.25}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("heads") / "d.zarr")


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", HEADS)
def test_a_killed_run_goes_on_exactly(data, tmp_path, kind):
    spec = make_spec(head={"kind": kind, **SMALL[kind]})

    def run(name, progress=lambda *row: None):
        return train(make_settings(**SETTINGS), spec, *data, CONTRACT, tmp_path / name, progress=progress)

    def kill(done, *rest):
        raise Killed

    whole = run("whole")
    with pytest.raises(Killed):
        run("cut", kill)
    torch.manual_seed(99)  # the random state of the new process is another one
    seen = []
    cut = run("cut", lambda done, *rest: seen.append(done))
    assert seen == [4]
    a, b = (load_file(folder / "policy.safetensors") for folder in (whole, cut))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    rows = [json.loads((folder.parent / "metrics.json").read_text()) for folder in (whole, cut)]
    same = [[{k: v for k, v in row.items() if "loss" in k or "error" in k} for row in r] for r in rows]
    assert same[0] == same[1] and len(same[0]) == 2


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_chosen_by_name(kind):
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", [f"policy/head={kind}", "policy=mvp_mlp"]))["policy"]
    sizes = {"cameras": ("hand",), "dim": 8, "tokens": 4}
    policy = ChunkPolicy(PolicySpec.from_dict(config | sizes))
    head, settings = policy.network.head, config["head"]
    assert type(head) is HEADS[kind][1] and settings.pop("kind") == kind
    if settings:  # every value stands in the file, and is the code's own default
        assert vars(head.settings) == settings == vars(HEADS[kind][0]())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["policy/head=flw"],
            "policy/head: expected one of act, diffusion, flow, gmm, mip, regression, got flw, did you mean 'flow'?",
        ),
        (
            ["policy.head=flow"],
            "policy.head: found 'flow'; this one chooses from a group, as policy/head=flow",
        ),
        (
            ["policy/head=flow", "policy.head.stps=3"],
            "unknown key 'policy.head.stps', did you mean 'policy.head.steps'?",
        ),
    ],
    ids=lambda w: "",
)
def test_a_wrong_choice_is_one_line(words, line, tmp_path, capsys):
    status = cli.main(["train", *words, f"hydra.run.dir={tmp_path / 'run'}", "demos.path=none"])
    assert status == 2 and capsys.readouterr().err == f"s2robot train: error: {line}\n"
