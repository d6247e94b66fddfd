"""`s2robot doctor`: what it finds here, what it misses, and a checkpoint that acts differently."""

import torch

from s2robot import doctor
from s2robot.golden import FILE, write_trace
from s2robot.loading import image_size_of, load_networks


def test_this_machine_is_well_and_what_is_missing_is_named(here, monkeypatch, save_untrained, tmp_path):
    found = here("doctor")
    lines = {line.split()[1]: line for line in found.stdout.splitlines()}
    assert found.returncode == 0 and lines["sim"].startswith("ok") and "MUJOCO_GL=" in lines["drawing"]
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "xarm" else name)
    monkeypatch.setattr(doctor, "version", lambda name: "0.1")
    wrong = here("doctor")
    assert wrong.returncode == 1 and "pip install 's2robot[xarm]'" in wrong.stdout
    assert any(
        line.startswith("FAIL  numpy") and line.endswith("got 0.1") for line in wrong.stdout.splitlines()
    )


def test_a_checkpoint_that_acts_differently_fails(here, save_untrained, tmp_path):
    folder = save_untrained(tmp_path / "checkpoint")
    assert "it has no golden trace" in here("doctor", f"checkpoint={folder}").stdout
    policy, encoder, contract = load_networks(folder, torch.device("cpu"))
    write_trace(
        folder, policy, encoder, contract, image_size_of(contract, encoder), torch.zeros(2, 8).numpy()
    )
    assert "its golden trace matches" in here("doctor", f"checkpoint={folder}").stdout
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-9])
    bad = here("doctor", f"checkpoint={folder}")
    assert bad.returncode == 1 and "FAIL  checkpoint" in bad.stdout and "which is damaged" in bad.stdout
