"""`s2robot doctor`: its checks on this machine, missing packages, and a checkpoint whose actions changed."""

import torch

from s2robot import doctor
from s2robot.golden import FILE, write_trace
from s2robot.loading import image_size_of, load_networks


def test_doctor_passes_here_and_names_missing_packages(here, monkeypatch):
    monkeypatch.setattr(doctor, "_MIN_GB", 0.0)  # whatever disk the tests run on
    lines = {line.split()[1]: line for line in here("doctor").stdout.splitlines()}
    assert lines["sim"].startswith("ok") and "MUJOCO_GL=" in lines["drawing"]
    monkeypatch.setattr(doctor, "_MIN_GB", 1e9)
    assert "at least 1e+09 needed" in here("doctor", status=1).stdout.partition("FAIL  cache")[2]
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "xarm" else name)
    monkeypatch.setattr(doctor, "version", lambda name: "0.1")
    monkeypatch.setattr(doctor, "choose_gl", lambda: 1 / 0)
    monkeypatch.setattr(doctor, "cache_dir", lambda: 1 / 0)
    monkeypatch.setattr(doctor, "default_dtype", lambda: torch.float32)
    bad = here("doctor", status=1)
    texts = "pip install 's2robot[xarm]'", "without bfloat16", "efficientnet_lite0", "SpaceMouse"
    assert all(text in bad.stdout for text in texts)
    failed = [line.split()[1] for line in bad.stdout.splitlines() if "ZeroDivisionError: division" in line]
    assert failed == ["cache", "drawing"]
    assert any(x.startswith("FAIL  numpy") and x.endswith("got 0.1") for x in bad.stdout.splitlines())


def test_checkpoint_with_different_actions_fails(here, save_untrained, tmp_path):
    folder = save_untrained(tmp_path / "checkpoint")
    assert "it has no golden trace" in here("doctor", f"checkpoint={folder}", status=None).stdout
    policy, encoder, contract = load_networks(folder, torch.device("cpu"))
    states = torch.zeros(2, 8).numpy()
    write_trace(folder, policy, encoder, contract, image_size_of(contract, encoder), states)
    assert "its golden trace matches" in here("doctor", f"checkpoint={folder}", status=None).stdout
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-9])
    bad = here("doctor", f"checkpoint={folder}", status=1)
    assert "expected a readable trace" in bad.stdout.partition("FAIL  checkpoint")[2]
