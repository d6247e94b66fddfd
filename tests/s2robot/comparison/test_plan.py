"""The plan of a comparison: settings rejected before anything runs, and the overrides of each verb."""

from pathlib import Path

import pytest

from s2robot.comparison.compare import compare
from s2robot.comparison.jobs import with_needs
from s2robot.comparison.plan import evaluation, make_plan, overrides_for, settings_of, training, worlds_of
from s2robot.comparison.settings import Axis, Compare
from s2robot.core.errors import UserError
from s2robot.core.settings import read_some
from s2robot.encoders import build as encoders
from tests.configs import composed
from tests.errors import refuses


def read(*words: str) -> Compare:
    return read_some(Compare, composed("compare", "run_dir=out", *words), "")


def refused(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        make_plan(read(*words), [w for w in words if not w.startswith(("+", "experiment", "arms"))])
    return str(caught.value)


@pytest.mark.parametrize("name", ["pusht", "aloha_transfer", "aloha_insertion", "metaworld5"])
def test_overrides_of_external_experiments_are_valid_for_every_verb(name):
    """The worlds are not installed here; overrides win over the experiment's own `record`."""
    settings = read(f"experiment={name}")
    experiment = settings.experiment
    own = [f"{a.key}={a.values[1]}" for a in map(experiment.axes.__getitem__, experiment.default_axes)]
    for words in [[*experiment.overrides, *arm.overrides, *own] for arm in experiment.arms.values()]:
        configs = {verb: settings_of(verb, words) for verb in ("record", "encode", "train", "evaluate")}
        assert {cfg.task.name for cfg in configs.values()} == {"gym"} and len(experiment.published) > 0
    assert settings.records is (name != "pusht")
    assert read(f"experiment={name}", "record=false").records is False


def test_removed_arms_and_axes_stay_removed():
    experiment = read("~experiment.arms.base", "~experiment.axes.cube_size").experiment
    assert list(experiment.arms) == ["base-s2", "base-s2-pretrained"]
    assert "cube_size" not in experiment.axes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["arms=[base,base-s3]"], "arms: expected some of base, base-s2, base-s2-pretrained, got 'base-s3'"),
        (["+experiment.arms.x='train.step=3'", "arms=[base,x]"], "arm 'x': Could not override 'train.step'"),
        (["+experiment.arms.x='demos.episodes=3'", "arms=[base,x]"], "experiment.arms.x: expected the same demos.episodes for all arms"),
        (["+experiment.arms.x='jobs=3'", "arms=[base,x]"], "experiment.arms.x: expected overrides of task, robot, "),
        (["+experiment.arms.x='encoder.checkpoint=none.safetensors'", "arms=[base,x]"], f"arm 'x': {Path('none.safetensors').resolve()}: expected an encoder file"),
        (["experiment.seeds=[]"], "experiment.seeds: expected at least 1 values, got []"),
        (["experiment.pairs=[[base,bass]]"], "experiment.pairs: expected some of base, base-s2, base-s2-pretrained, got 'bass'"),
        (["+experiment.arms.x='\"encoder=mvp-tiny'", "arms=[base,x]"], "experiment.arms.x: No closing quotation"),
        (["experiment.pairs=[[base,base]]"], "experiment.pairs: expected two different arms in each pair"),
        (["train.seed=3"], "train.seed: expected the training seeds in experiment.seeds"),
        (["train.steps=0", "arms=[base,base-s2]"], "arm 'base': train.steps: expected >= 1, got 0"),
        (["policy.chunk=0", "arms=[base,base-s2]"], "arm 'base': policy.chunk: expected >= 1, got 0"),
        (["evaluate.episodes=two"], "all arms: evaluate.episodes: expected an integer, got 'two'"),
        (["axes=[demo]"], "axes: expected some of cube_size, demos"),
        (["experiment.power.gap=0.3"], "experiment.power.gap: expected <= 0.25 with base=0.75, got 0.3"),
        (["demos.path=none.zarr", "arms=[base,base-s2]"], "none.zarr: expected a dataset folder"),
        (["evaluate.seed=100000", "arms=[base,base-s2]"], "all arms: evaluate.seed: positions 100000 to 100127 hold 120"),
        (["record=true", "evaluate.seed=100000", "arms=[base,base-s2]"], "all arms: evaluate.seed: positions 100000"),
    ],
)  # fmt: skip
def test_invalid_comparison_is_one_error_line(words, expected):
    assert expected in refused(*words)


def test_error_names_the_arm_with_missing_weights(tmp_path, monkeypatch):
    """As after `pip install`: the wheel does not contain the largest weights."""
    for name in ("mvp-tiny", "mvp-tiny-s2"):
        (tmp_path / f"{name}.safetensors").symlink_to(encoders.WEIGHTS / f"{name}.safetensors")
    monkeypatch.setattr(encoders, "WEIGHTS", tmp_path)
    assert list(read("experiment.arms.base=null").experiment.arms) == ["base-s2", "base-s2-pretrained"]
    line = refused("experiment=table10")
    assert line.startswith(f"arm 'large': encoder mvp-small: {tmp_path / 'mvp-small.safetensors'} ")


def test_too_few_positions_are_rejected_before_anything_runs(tmp_path):
    out = tmp_path / "out"
    words = ["arms=[base,base-s2]", "evaluate.episodes=16", "experiment.power.strict=true"]
    with pytest.raises(UserError, match="^evaluate.episodes: expected >= [0-9]+ to detect a gap .*, got 16"):
        compare(composed("compare", f"run_dir={out}", *words), words[1:2])
    assert [path.name for path in out.iterdir()] == [".lock"]


@pytest.mark.parametrize(("words", "demos"), [([], 120), (["record=true", "recording.episodes=40"], 40)])
def test_axis_of_demos_is_limited_by_the_dataset(words, demos):
    settings = read("arms=[base,base-s2]", "axes=[demos]", *words)
    plan, axis = make_plan(settings, words), settings.experiment.axes["demos"]
    default, worlds = worlds_of(plan, "demos", axis.replace(values=(15, demos)))
    assert default == demos and [world.trains for world in worlds] == [True, False]
    with pytest.raises(UserError, match=f"demos.values: expected integers from 1 to {demos}, got 121"):
        worlds_of(plan, "demos", axis.replace(values=(15, 121)))


def test_value_that_differs_from_an_arm_needs_its_own_training():
    arm = "+experiment.arms.long={label: long, overrides: 'encoder=mvp-tiny s2=single train.steps=9'}"
    plan = make_plan(read(arm, "arms=[base,long]"), [])
    assert plan.arms[1].overrides == ("encoder=mvp-tiny", "s2=single", "train.steps=9")
    axis = Axis(label="steps", key="train.steps", values=(9, 2000), train=True)
    default, worlds = worlds_of(plan, "steps", axis)
    assert default is None and [world.trains for world in worlds] == [True, True]
    default, worlds = worlds_of(plan, "clip", axis.replace(key="train.grad_clip", values=(None, 1.0)))
    assert default == 1.0 and [world.trains for world in worlds] == [True, False]
    assert worlds[0].words == ("train.grad_clip=null",)
    default, worlds = worlds_of(plan, "", axis.replace(key="s2.scales", values=([1], [2])))
    assert type(default) is list and [world.trains for world in worlds] == [False, True]
    _, (world,) = worlds_of(plan, "demos", axis.replace(key="demos.path", values=("/a/b",)))
    assert world.root == plan.out / "axes/demos/_a_b"
    refuses("arm 'base': train.steps: .*, got -5", worlds_of, plan, "steps", axis.replace(values=(-5,)))
    with pytest.raises(UserError, match="axes: expected a key that .*, got train.stepz"):
        worlds_of(plan, "steps", axis.replace(key="train.stepz"))


def test_axis_can_set_a_key_that_only_the_world_has():
    words = ["task=gym", "task.id=Pendulum-v1", "task.success=terminated", "++task.kwargs.g=9.0"]
    plan = make_plan(read("arms=[base,base-s2]"), [])._replace(common=tuple(words))
    axis = Axis(label="", key="++task.kwargs.g", values=(9.0, 5.0), record=True)
    default, worlds = worlds_of(plan, "world", axis)
    assert default == 9.0 and [world.trains for world in worlds] == [False, True]
    assert settings_of("record", overrides_for("record", worlds[1].recording.overrides)).task.kwargs.g == 5.0


def test_each_verb_gets_its_own_overrides_and_the_last_of_a_key():
    words = ["env.cube_size=0.03", "train.steps=2", "encoder=mvp-tiny", "evaluate.videos=1", "recording.episodes=5", "train.steps=3"]  # fmt: skip
    assert overrides_for("train", words) == ["env.cube_size=0.03", "encoder=mvp-tiny", "train.steps=3"]
    assert overrides_for("evaluate", words) == ["env.cube_size=0.03", "evaluate.videos=1"]
    assert overrides_for("record", words) == ["env.cube_size=0.03", "episodes=5"]
    assert settings_of("train", words).train.steps == 3


def test_stages_encode_once_per_frozen_encoder_with_its_scales():
    heads = "+experiment.arms.heads='encoder=mvp-tiny s2=single policy=rpt'"
    tuned = "+experiment.arms.tuned='s2=single train.tune.blocks=1'"
    settings = read(heads, tuned, "arms=[base,heads,base-s2,tuned]", "experiment.seeds=[3,4]")
    plan = make_plan(settings, ["evaluate.videos=2"])
    assert [arm.name for arm in plan.arms] == ["base", "heads", "base-s2", "tuned"]
    policies = training(plan, plan.main)
    jobs = with_needs(policies.values())
    assert [job.name for job in jobs if job.verb == "encode"] == ["base: encode", "base-s2: encode"]
    job = policies["heads", 4]
    assert job.needs == (jobs[0],) and {"policy=rpt", "train.seed=4"} <= {*job.overrides}
    assert plan.facts["base"].about["scales"] == [1] and plan.facts["base-s2"].about["scales"] == [1, 2]
    cost = [plan.facts[name].about["gflops_per_frame"] for name in ("base", "base-s2")]
    assert cost[1] == pytest.approx(5 * cost[0], rel=0.01)  # five tiles
    assert plan.pairs[:3] == (("heads", "base"), ("base-s2", "base"), ("tuned", "base"))
    evaluations = evaluation(plan, plan.main, policies, 16)
    assert len(evaluations) == 8
    assert all({"evaluate.episodes=16", "evaluate.videos=2"} <= {*job.overrides} for job in evaluations)
    assert policies["tuned", 3].needs == ()  # a training with tuned blocks encodes by itself
    assert training(plan, plan.main._replace(recording=job))["tuned", 3].needs == (job,)  # any job
