"""The model card: a head that hubs read, and nothing that changes what a checkpoint is."""

import yaml

from s2robot.policies import load_checkpoint, save_checkpoint
from s2robot.policies.card import write_card
from tests.policies.test_checkpoint import CONTRACT

SUMMARY = {
    "success": 0.992, "low": 0.957, "high": 0.999, "episodes": 128,
    "policy": {"parameters": 1_250_000},
}  # fmt: skip


def head_of(text: str) -> dict:
    start, head, body = text.split("---\n", 2)
    assert not start and body
    return yaml.safe_load(head)


def test_every_checkpoint_has_one(tmp_path, make_policy):
    policy = make_policy()
    folder = save_checkpoint(tmp_path / "a", policy, CONTRACT)
    text = (folder / "README.md").read_text()
    head = head_of(text)
    assert head["library_name"] == "s2robot" and head["pipeline_tag"] == "robotics"
    assert CONTRACT["robot"] in head["tags"] and "success" not in text
    assert 'load_policy("<this folder>")' in text and "float32 (8,)" in text
    again = save_checkpoint(tmp_path / "b", policy, CONTRACT)
    assert (again / "README.md").read_bytes() == (folder / "README.md").read_bytes()


def test_a_summary_stands_in_it_and_changes_nothing_else(tmp_path, make_policy):
    folder = save_checkpoint(tmp_path / "a", make_policy(), CONTRACT)
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}
    write_card(folder, SUMMARY)
    text = (folder / "README.md").read_text()
    assert head_of(text)
    assert "99.2 % of 128 episodes (95 % interval 95.7–99.9 %)" in text and "1.25 M parameters" in text
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"} == kept
    (folder / "README.md").unlink()  # nothing needs it
    assert load_checkpoint(folder)[1]["robot"] == CONTRACT["robot"]
