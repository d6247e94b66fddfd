"""The commands on a tiny scale: `run`, `evaluate`, and their errors for bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from s2robot import pipeline, verbs
from s2robot.config import task_settings
from s2robot.demos.errors import DatasetError
from s2robot.demos.lineage import Lineage
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import ENV_VERSION
from s2robot.evaluation.records import read_records, read_summary
from s2robot.policies import load_checkpoint
from tests import forks
from tests.configs import composed
from tests.errors import refuses
from tests.kills import ROOT
from tests.s2robot.core.test_timing import spans_of
from tests.s2robot.pictures import TRAINING, write_noise
from tests.s2robot.point import POINT

EVALUATION = ["evaluate.episodes=2", "evaluate.workers=1", "evaluate.threads=1", "env.max_steps=8"]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Run `s2robot <arguments>` in a temporary folder, with one feature cache for all commands."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*args: object, start=("-m", "s2robot")) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"S2ROBOT_CACHE": str(cache), forks.ALL: "1"}
        words = [sys.executable, *map(str, [*start, *args])]
        return forks.run(words, cwd=cache, env=env, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="module")
def finished(command, recorded, tiny_encoder, tmp_path_factory):
    """A complete `s2robot run`: its result and its folder."""
    out = tmp_path_factory.mktemp("run") / "out"
    words = [f"demos.path={recorded}", f"encoder.checkpoint={tiny_encoder}", f"hydra.run.dir={out}"]
    result = command("run", *words, "evaluate.videos=0", "profile=true", *TRAINING, *EVALUATION)
    assert result.returncode == 0, result.stderr
    return result, out


def refused(here, verb: str, *words: object) -> str:
    """Return the single line on standard error of a command that must exit with status 2."""
    lines = here(verb, *words, status=2).stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"s2robot {verb}: error: "), lines
    return lines[0]


def test_run_ends_with_a_report_and_a_figure(finished, recorded):
    result, out = finished
    summary, records = read_summary(out / "summary.json"), read_records(out / "episodes.jsonl")
    assert summary["episodes"] == len(records) == 2
    assert f"in {summary['successes']} of 2 episodes" in result.stdout
    assert result.stdout.rstrip().splitlines()[-1] == f"report: {out / 'report.html'}"
    page = (out / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>") and str(ROOT) not in page
    stages = json.loads((out / "stages.json").read_text())
    assert [s["stage"] for s in stages] == ["start", "encode", "train", "evaluate"]
    table = [line.split() for line in result.stdout.split("unused of")[1].split("\n\n")[0].splitlines()[1:]]
    seconds = {row[0]: (float(row[1]), float(row[3])) for row in table}
    assert all(seconds[s["stage"]] == (s["seconds"], s["processor_s"]) for s in stages)
    assert [r["seed"] for r in records] == [10000, 10001]
    policy, contract = load_checkpoint(out / "checkpoint")
    store = EpisodeStore.open(recorded)
    assert contract["dataset"] == {"name": "demos.zarr", "fingerprint": store.fingerprint, "episodes": 3}
    assert contract["lineage"]["positions"] == {"recorded": [500, 501, 502]}
    assert Lineage.of(contract).seen(store) == [0, 1, 2]
    assert contract["cameras"] == ["hand", "left", "right"] and contract["robot"] == "xarm7"
    assert policy.spec.dim == 128 and policy.spec.tokens == 16 and contract["encoder"]["sizes"] == [32, 64]
    assert [row["step"] for row in json.loads((out / "metrics.json").read_text())] == [2]


def test_profile_contains_the_spans_of_all_processes(finished):
    spans = spans_of(finished[1] / "trace.json")
    by_name = {name: [row for row in spans if row["name"] == name] for name in {row["name"] for row in spans}}
    (train,) = by_name["train"]
    assert [row["pid"] for row in by_name["step"]] == [train["pid"]] * 2
    assert len(by_name["draw"]) == len(by_name["encode"]) - 1  # a stage of the run has this name, too
    assert train["pid"] not in {row["pid"] for row in by_name["draw"]}
    records = [json.loads(line) for line in (finished[1] / "episodes.jsonl").read_text().splitlines()]
    assert sorted(row["args"]["episode"] for row in by_name["episode"]) == [r["episode"] for r in records]


def test_evaluate_repeats_the_records_of_the_run(finished, here, tmp_path):
    _, out = finished
    words = [f"checkpoint={out / 'checkpoint'}", "evaluate.videos=1", "evaluate.video_size=32", *EVALUATION]
    here("evaluate", *words, f"hydra.run.dir={tmp_path / 'again'}")
    again = read_records(tmp_path / "again/episodes.jsonl")
    (filmed,) = [r["video"] for r in again if r["video"]]
    assert (tmp_path / "again" / filmed).stat().st_size > 1000
    assert [r | {"video": None} for r in again] == read_records(out / "episodes.jsonl")
    assert (tmp_path / "again/report.html").is_file()
    before, after = (read_summary(folder / "summary.json") for folder in (out, tmp_path / "again"))
    assert all(before[key] == after[key] for key in ("success", "by_stage", "policy"))


INLINE = """
import sys, pytest
from s2robot.cli import main
from tests.inline import do_inline
do_inline(pytest.MonkeyPatch())  # tests the second rank, without workers
sys.exit(main())
"""


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_run_of_two_processes_records_and_can_be_repeated(command, tiny_encoder, tmp_path, times):
    """One process records, encodes, evaluates and writes; repeating the command keeps its results."""
    (tmp_path / "inline.py").write_text(INLINE)
    out = tmp_path / "out"
    words = [
        "run", *POINT, "record=true", "recording.episodes=2", "recording.workers=1", f"encoder.checkpoint={tiny_encoder}",
        f"hydra.run.dir={out}", *TRAINING, "train.devices=2", "train.accelerator=cpu", "train.strategy=ddp",
        "evaluate.videos=0", *EVALUATION[:-1],
    ]  # fmt: skip
    written = []
    for _ in range(times):
        result = command(*words, start=[tmp_path / "inline.py"])
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("report: ") == 1 and len(EpisodeStore.open(out / "demos.zarr")) == 2
        files = ("checkpoint/policy.safetensors", "episodes.jsonl", "demos.zarr/data/action/c.0.0")
        written.append([(out / name).read_bytes() for name in files])
    assert written[0] == written[-1]
    stages = [s["stage"] for s in json.loads((out / "stages.json").read_text())]
    assert stages == ["start", "record", "encode", "train", "evaluate"]


def test_unusable_demos_are_one_error_line(here, recorded, tiny_encoder, tmp_path):
    cut = Path(shutil.copytree(recorded, tmp_path / "cut.zarr"))
    chunk = max((cut / "data/state").glob("c.*"), key=lambda file: file.stat().st_size)
    os.truncate(chunk, chunk.stat().st_size // 2)
    source = EpisodeStore.open(recorded)
    with EpisodeStore.create(tmp_path / "panda.zarr", source.attrs | {"robot": "panda"}) as store:
        store.append(source.episode(0), {"seed": 0, "success": True})
    encoder = f"encoder.checkpoint={tiny_encoder}"
    for verb, words, text in (
        ("train", [encoder, f"demos.path={cut}"], "cut.zarr/data/state/c."),
        ("run", [encoder, f"demos.path={store.path}"], "panda.zarr: robot: expected xarm7, got panda"),
        ("record", ["episodes=1", "workers=1", f"out={recorded}"], "nothing was overwritten"),
        ("run", ["record=true", "evaluate.device=cuda:9", "encoder.checkpoint=no"], "evaluate.device: "),
    ):
        assert text in refused(here, verb, *words)
    assert EpisodeStore.open(recorded).fingerprint == source.fingerprint


def test_folder_of_another_run_is_refused_before_encoding(finished, here, recorded, tiny_encoder, tmp_path):
    words = [f"demos.path={recorded}", f"encoder.checkpoint={tiny_encoder}", f"hydra.run.dir={finished[1]}"]
    words += [f"features.cache={tmp_path / 'cache'}", *TRAINING, *EVALUATION]
    for word, text in (
        ("train.lr=0.5", "training_state.pt: train.lr: expected 0.001 as in the saved state"),
        ("s2=single", "training_state.pt: encoder.settings.scales: expected [1, 2] as in the saved state"),
        ("recording.episodes=2", "record: expected true with recording.episodes=2, got false"),
    ):
        assert text in refused(here, "run", *words, word)
    assert not (tmp_path / "cache").exists()


def test_unknown_simulated_camera_is_reported_before_any_work(recorded, tmp_path, capsys):
    wrist = write_noise(tmp_path / "wrist.zarr", {"wrist": (32, 32)}, (5,), env_version=ENV_VERSION)
    overrides = ["env.cameras=[wrist]", f"demos.path={wrist}", "run_dir=unused"]
    words = r"env.cameras: expected .*, got 'wrist'; .*'\+env.side_cameras.wrist="
    refuses(words, pipeline.run, composed("run", *overrides))
    placed = composed("run", *overrides, "+env.side_cameras.wrist=[[0.3,0,0.5],[0,0,0.1],45]")
    assert task_settings(placed).camera_problem() == ""
    with pytest.raises(DatasetError, match="expected 'wrist' among them"):
        verbs.train(composed("train", *overrides, f"demos.path={recorded}"))  # other demos, as of an arm
    assert "note: this policy can act on an arm, but not be evaluated" in capsys.readouterr().out


def test_inspect_replays_demos_and_writes_a_page(here, recorded, tmp_path):
    small = ["videos.draw=32", "demos.episodes=2", "workers=1"]
    for name, more, text in (
        ("replay", ["replay=true"], "3 of 3 episodes succeed again; proprioception differs by at most 0\n"),
        ("inspect", small, f"page: {tmp_path / 'inspect/inspect.html'}"),
    ):
        assert text in here("inspect", *more, f"data={recorded}", f"hydra.run.dir={tmp_path / name}").stdout
    files = sorted(p.name for p in (tmp_path / "inspect/episodes").iterdir())
    assert files == ["0000.js", "0000.mp4", "0001.js", "0001.mp4"]


def test_only_the_demos_of_the_training_are_encoded(here, recorded, tiny_encoder, tmp_path):
    words = [f"demos.path={recorded}", f"encoder.checkpoint={tiny_encoder}"]
    words += [f"features.cache={tmp_path / 'cache'}", *TRAINING, "features.augment=0", "env.cameras=[hand]"]

    def trained(name, *more):
        here("train", *words, *more, f"hydra.run.dir={tmp_path / name}")
        (marks,) = (tmp_path / "cache").glob("*/done.txt")
        policy = tmp_path / name / "checkpoint/policy.safetensors"
        return sorted(map(int, marks.read_text().split())), policy.read_bytes()

    done, policy = trained("two", "demos.episodes=[0,2]")
    assert done == [0, 2]
    here("encode", *words[:3], "features.workers=1", words[-1])
    assert trained("again", "demos.episodes=[0,2]") == ([0, 1, 2], policy)  # more features change nothing
    (tmp_path / "two/checkpoint_notes").mkdir()  # the user's
    shutil.copytree(recorded, tmp_path / "moved.zarr")
    words[0] = f"demos.path={tmp_path / 'moved.zarr'}"
    assert trained("two", "demos.episodes=[0,2]") == ([0, 1, 2], policy)  # resumed


def test_policy_is_evaluated_during_training(here, tiny_encoder, tmp_path):
    out = tmp_path / "out"
    here("record", *POINT, "episodes=3", "seed=500", "workers=1", "out=demos.zarr")
    rollouts = ["train.rollouts.every=1", "train.rollouts.episodes=1", "train.rollouts.keep=1"]
    words = [*POINT, "demos.path=demos.zarr", f"encoder.checkpoint={tiny_encoder}", *TRAINING, *rollouts]
    here("train", *words, f"hydra.run.dir={out}")
    rows = json.loads((out / "metrics.json").read_text())
    checkpoints = json.loads((out / "checkpoints.json").read_text())
    assert [row["success"] for row in rows] == [0, 0] and [row["step"] for row in checkpoints] == [2]
    assert load_checkpoint(out / "checkpoint_2")[1]["training"]["demos"] == 3
    assert read_records(out / "rollouts/checkpoint_2/episodes.jsonl")[0]["seed"] == 30000
    # in spite of the old policy's rollouts
    here("train", *words, "train.lr=0.002", "train.resume=false", f"hydra.run.dir={out}")
    checkpoint, child = f"checkpoint={out / 'checkpoint'}", f"train.from={out / 'checkpoint'}"
    chose = "hold 1 that chose among the checkpoints"
    (tmp_path / "used").mkdir()
    (tmp_path / "used/episodes.jsonl").touch()  # of another policy
    for verb, overrides, line in (
        ("train", [*words, "train.rollouts.seed=500"], "train.rollouts.seed: positions 500 to 500 hold 1"),
        ("run", [*words, "train.rollouts.seed=10001"], f"evaluate.seed: positions 10000 to 10127 {chose}"),
        ("evaluate", [*POINT, checkpoint, "evaluate.seed=30000"], f"positions 30000 to 30127 {chose}"),
        ("run", [*words, child, "train.rollouts.seed=31000", "evaluate.seed=30000"], f"30127 {chose}"),
        ("run", [*words, "train.resume=false", "hydra.run.dir=used"], "used/episodes.jsonl: expected no episodes"),
    ):  # fmt: skip
        assert line in refused(here, verb, *overrides)
