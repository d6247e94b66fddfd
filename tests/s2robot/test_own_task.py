"""docs/tasks.md: a user's task from demos to report, and its possible faults."""

import sys
from pathlib import Path

import pytest

from s2robot.cli import main
from s2robot.core.files import read_json
from s2robot.demos.store import EpisodeStore
from s2robot.envs import tasks
from s2robot.evaluation.records import read_records, read_summary
from tests.inline import do_inline
from tests.s2robot.pictures import TRAINING
from tests.s2robot.point import POINT

FOLDER = Path(__file__).resolve().parents[2] / "examples/own_task"
TASK = ["--config-dir", str(FOLDER / "configs"), "task=pusher"]


def clear_user_tasks(*modules: str) -> None:
    """Reset to a process that has loaded no user task."""
    tasks._USER_TASKS.clear()
    for name in modules:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_encoder):
    """`s2robot run` as on the page, with smaller numbers."""
    folder = tmp_path_factory.mktemp("own")
    numbers = "record=true recording.episodes=2 recording.workers=1 evaluate.episodes=2 evaluate.workers=1 evaluate.videos=1"
    where = [f"encoder.checkpoint={tiny_encoder}", f"hydra.run.dir={folder / 'run'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        do_inline(patch)
        patch.setitem(sys.modules, "robosuite", None)  # as if not installed: this world needs no simulator
        assert main(["run", *TASK, *TRAINING, *numbers.split(), *where]) == 0
        yield folder / "run"
    clear_user_tasks("pusher")


def test_demos_policy_evaluation_and_report(run):
    demos = EpisodeStore.open(run / "demos.zarr")
    assert (len(demos), demos.attrs["kind"], demos.attrs["layout_names"]) == (2, "images", ["x", "y"])
    assert demos["images_top"].shape[1:] == (64, 64, 3) and demos["action"].shape[1] == 2
    assert demos.meta("layout").shape == (2, 2)
    records = read_records(run / "episodes.jsonl")
    assert [set(record["layout"]) for record in records] == [{"x", "y"}] * 2
    assert all(record["progress"] < 0 and "cube_xy" not in record for record in records)
    assert read_summary(run / "summary.json")["task"]["name"] == "pusher"
    assert "pushed the puck onto the mark" in (run / "report.html").read_text()
    assert len(list((run / "videos").glob("*.mp4"))) == 1


def test_a_run_of_the_task_is_reproduced(run, tmp_path):
    words = [f"run={run}", *TASK, "workers=1", "margin=0.9", f"hydra.run.dir={tmp_path / 'again'}"]
    assert main(["reproduce", *words]) in (0, 4)
    assert read_json(tmp_path / "again/reproduce.json")["other_starts"] == {"state": [], "frames": []}


def test_demos_of_a_task_with_a_queryable_expert_are_relabelled(inline, tmp_path):
    task = [*POINT, "workers=1"]
    demos, out = tmp_path / "demos.zarr", tmp_path / "relabelled.zarr"
    words = ["episodes=1", "expert=0", f"out={demos}", f"hydra.run.dir={tmp_path / 'a'}"]
    assert main(["record", *task, *words]) == 0
    clear_user_tasks()
    words = [f"data={demos}", "expert=3", f"out={out}", f"hydra.run.dir={tmp_path / 'b'}"]
    assert main(["convert", *task, *words]) == 0
    relabelled = EpisodeStore.open(out)
    assert (relabelled["expert"][:, 0] == relabelled["action"]).all()
    assert relabelled["expert"].shape[1:] == (3, 2)
    assert relabelled.lengths.tolist() == EpisodeStore.open(demos).lengths.tolist()
    clear_user_tasks()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("import mujoco", "import notinstalled", "cannot be imported: No module named 'notinstalled'"),
        ("def apply(", "def applied(", "task.class: expected a class with apply, "),
        ('self.camera_sizes["top"]', "(32, 32)", "'top': expected uint8 (64, 64, 3), got uint8 (32, 32, 3)"),
        ('{"top": self._r', '{"front": self._r', "'top': expected uint8 (64, 64, 3), got none"),
    ],
)
def test_error_names_the_fault_in_the_task_file(inline, tmp_path, monkeypatch, capsys, old, new, words):
    module = f"pusher_{abs(hash(new))}"  # a new name each time, because bytecode is cached by time and size
    code = (FOLDER / "pusher.py").read_text(encoding="utf-8")
    assert old in code
    (tmp_path / f"{module}.py").write_text(code.replace(old, new), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    where = [f"task.class={module}:Pusher", "workers=1", "episodes=1", f"hydra.run.dir={tmp_path / 'run'}"]
    try:
        assert main(["record", *TASK, *where]) == 2
    finally:
        clear_user_tasks(module)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert words in line


def test_task_without_a_name_is_one_error_line(tmp_path, capsys):
    (tmp_path / "task").mkdir()
    (tmp_path / "task/mine.yaml").write_text("class: pusher:Pusher\n")
    words = ["--config-dir", str(tmp_path), "task=mine", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(["train", *words]) == 2
    assert capsys.readouterr().err.startswith("s2robot train: error: task.name: ")
