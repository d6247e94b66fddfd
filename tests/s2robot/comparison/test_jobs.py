"""Jobs in parallel: failed, killed and finished ones."""

import subprocess

import pytest
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton

from s2robot.comparison.jobs import Job, run_jobs
from s2robot.core.errors import UserError
from s2robot.core.files import configs_dir
from s2robot.core.run_folder import locked
from s2robot.overrides import path_word
from tests import forks
from tests.errors import refuses
from tests.kills import ROOT


def test_failed_job_is_one_error_line_with_its_log(tmp_path):
    """A job may use the folder that the comparison has locked, as the recording of demos does."""
    out = tmp_path / "out"
    words = [f"run={tmp_path / 'none'}", f"hydra.run.dir={out}", "hydra.output_subdir=.hydra-report"]
    job = Job("base seed 0: report", "inspect", words, tmp_path / "jobs/report")
    later = Job("later", "inspect", ["run=x"], tmp_path / "later", needs=[job])
    with locked(out), pytest.raises(UserError, match="^base seed 0: report: run: .*none; see .*report.log$"):
        run_jobs([later, job], 2, 1)
    assert not later.file("json").exists() and not job.is_done()
    assert job.file("log").read_text().startswith("$ s2robot inspect run=")
    assert (out / ".hydra-report/config.yaml").is_file() and not (out / ".hydra").exists()


def test_job_reads_the_configs_of_the_user(tmp_path, monkeypatch):
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
    assert "pusher" in job.file("log").read_text().split("\n", 1)[1]


def test_killed_job_reports_its_signal(tmp_path, monkeypatch):
    job = Job("base: report", "inspect", ["run=none"], tmp_path / "j")
    killed = subprocess.Popen(["sh", "-c", "kill -9 $$"], stdin=subprocess.PIPE)
    monkeypatch.setattr("s2robot.comparison.jobs._start", lambda job, threads: killed)
    refuses("^base: report: ended by SIGKILL; see ", run_jobs, [job], 1, 1)


def test_finished_job_is_skipped_and_a_different_one_is_rejected(tmp_path):
    lines = tmp_path / "episodes.jsonl"
    job = Job("j", "inspect", ["run=none"], tmp_path / "j", lines=(lines, 2))
    job.claim()
    assert not job.is_done()
    job.file("done").touch()
    lines.write_text("1\n")
    assert not job.is_done()  # as after a shorter evaluation
    lines.write_text("1\n2\n3\n")
    run_jobs([job], 1, 1)  # would fail if it ran
    for out in (tmp_path / "a", tmp_path / "moved to"):
        words = [f"run={path_word(out)}", f"old={path_word(out / 'x')}"]
        Job("j", "inspect", words, out / "j", root=out).claim()
        if not (moved := tmp_path / "moved to").exists():
            out.rename(moved)
    other = Job("j", "inspect", ["run=more"], tmp_path / "j")
    refuses("j.json: command: expected .*none .*, got .*more; .*hydra.run.dir", run_jobs, [other], 1, 1)
