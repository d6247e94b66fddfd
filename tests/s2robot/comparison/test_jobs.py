"""Commands side by side: what fails, what is killed, what is done already."""

import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton

from s2robot.comparison.jobs import Job, run_jobs
from s2robot.core.errors import UserError
from s2robot.core.files import configs_dir
from s2robot.core.run_folder import locked
from tests import forks
from tests.kills import ROOT


def test_a_failed_job_is_one_line_with_its_log(tmp_path):
    job = Job("base seed 0: report", "inspect", [f"run={tmp_path / 'none'}", f"hydra.run.dir={tmp_path / 'out'}"], tmp_path / "jobs/report")  # fmt: skip
    later = Job("later", "inspect", ["run=x"], tmp_path / "later", needs=[job])
    with pytest.raises(
        UserError,
        match=r"^base seed 0: report: run: .*none; see .*report.log$",
    ):
        run_jobs([later, job], 2, 1, lambda text: None)
    assert not later.state_file.exists() and not job.is_done()
    assert job.log.read_text().startswith("$ s2robot inspect run=")


def test_a_stamp_that_is_no_stamp_is_of_a_job_that_is_not_done(tmp_path):
    job = Job("record", "inspect", ["run=none"], tmp_path / "record")
    for text in ("[]", "{", "null"):
        job.state_file.write_text(text)
        assert not job.is_done()


def test_what_no_try_of_a_job_has_left_is_not_removed(tmp_path):
    demos = tmp_path / "demos.zarr"
    demos.mkdir()
    job = Job("record", "inspect", ["run=none"], tmp_path / "record", fresh=demos)
    for _ in range(2):
        with pytest.raises(
            UserError, match="demos.zarr: exists already, expected a new path; nothing was overw"
        ):
            run_jobs([job], 1, 1)
        assert demos.is_dir() and not job.state_file.exists()
    job.note(False)  # a try of it was killed
    with pytest.raises(UserError, match="run: .*none"):
        run_jobs([job], 1, 1)
    assert not demos.exists()


def test_a_job_may_work_in_the_folder_that_the_comparison_holds(tmp_path):
    """As the recording of its demos does; what it ran with stands beside what the comparison runs with."""
    out = tmp_path / "out"
    words = ["run=none", f"hydra.run.dir={out}", "hydra.output_subdir=.hydra-report"]
    with locked(out), pytest.raises(UserError, match="run: .*none"):
        run_jobs([Job("report", "inspect", words, tmp_path / "report")], 1, 1)
    assert (out / ".hydra-report/config.yaml").is_file() and not (out / ".hydra").exists()


def test_a_job_reads_the_users_own_configs_too(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", forks.Popen)
    own = ROOT / "examples/own_task/configs"
    state = Singleton.get_state()
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        cfg = compose("inspect", ["run=none"], return_hydra_config=True)
    cfg.hydra.runtime.config_sources = [ConfigSourceInfo(str(own), "file", "command-line")]
    try:
        HydraConfig.instance().set_config(cfg)
        job = Job("train", "train", ["task=pusher", "--cfg", "job"], tmp_path / "j")
        run_jobs([job], 1, 1)
        assert job.command == f"s2robot train --config-dir={own} task=pusher --cfg job"
    finally:
        Singleton.set_state(state)
    assert "pusher" in job.log.read_text().split("\n", 1)[1]


def test_a_job_that_is_killed_says_so(tmp_path, monkeypatch):
    job = Job("base: report", "inspect", ["run=none"], tmp_path / "j")
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdin=subprocess.PIPE)
    monkeypatch.setattr("s2robot.comparison.jobs._start", lambda job, threads: killed)
    killed.kill()
    with pytest.raises(UserError, match="^base: report: ended by SIGKILL; see "):
        run_jobs([job], 1, 1)


def test_a_finished_job_is_not_run_again_and_another_one_is_refused(tmp_path):
    job = Job("j", "inspect", ["run=none"], tmp_path / "j", inputs={"encoder": "a"})
    job.note(True)
    run_jobs([job], 1, 1)  # would fail
    other = Job("j", "inspect", ["run=none"], tmp_path / "j", inputs={"encoder": "b"})
    with pytest.raises(UserError, match="expected inputs .*'a'.*, got .*'b'.*hydra.run.dir"):
        run_jobs([other], 1, 1)
