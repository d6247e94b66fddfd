"""Policies on disk: bit-exact, complete after a kill, rejected if damaged or mismatched; and the model card."""

import hashlib
import json
import os

import pytest
import torch
import yaml
from safetensors.torch import save_file

from s2robot.core.provenance import versions
from s2robot.policies import check_contract, load_checkpoint, save_checkpoint
from s2robot.policies.checkpoint import write_card
from tests.errors import refuses
from tests.policies.small import make_batch, make_policy, plan_of

CONTRACT = {
    "encoder": {"name": "tiny", "fingerprint": "abc123", "scales": [1, 2]}, "cameras": ["hand", "left"],
    "camera_geometry": {"hand": {"fovy": 60.0}, "left": {"fovy": 45.0}}, "robot": "xarm7",
    "joint_names": [f"joint{i}" for i in range(1, 8)], "action_frame": "joint_delta_commanded", "rate_hz": 10,
    "dataset": {"name": "demos", "fingerprint": "d0", "episodes": 120},
}  # fmt: skip


@pytest.mark.parametrize(("kind", "head"), [("mlp", "regression"), ("transformer", "regression"), ("mlp", "diffusion")])  # fmt: skip
def test_round_trip_is_bit_exact(tmp_path, kind, head):
    policy = make_policy(kind=kind, context=2, action_target="cumulative", head={"kind": head})
    save_checkpoint(tmp_path / "best", policy, CONTRACT)
    loaded, contract = load_checkpoint(tmp_path / "best")
    assert loaded.spec == policy.spec and not loaded.training
    assert contract == contract | CONTRACT | {"versions": versions()}
    for name, tensor in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    batch = make_batch(policy)
    assert torch.equal(plan_of(loaded, batch), plan_of(policy, batch))
    assert sorted(os.listdir(tmp_path)) == ["best"]
    assert sorted(os.listdir(tmp_path / "best")) == ["README.md", "policy.json", "policy.safetensors"]


def killed(*_):
    raise KeyboardInterrupt


def test_interrupted_replacement_keeps_a_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "last"
    old, new = make_policy(), make_policy(chunk=2)
    save_checkpoint(folder, old, CONTRACT)
    real = os.replace
    for done in ([], [real]):  # killed before the first rename, and between the two
        left = iter(done)
        monkeypatch.setattr(os, "replace", lambda *paths, left=left: next(left, killed)(*paths))
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, new, CONTRACT)
        assert load_checkpoint(folder)[0].spec.chunk == 4
    monkeypatch.setattr(os, "replace", real)
    save_checkpoint(folder, new, CONTRACT)
    assert load_checkpoint(folder)[0].spec.chunk == 2
    assert os.listdir(tmp_path) == ["last"]


def test_rejected_save_writes_nothing(tmp_path):
    policy = make_policy()
    for key, contract in {
        "robot": {k: v for k, v in CONTRACT.items() if k != "robot"},
        "encoder.fingerprint": CONTRACT | {"encoder": {"name": "tiny"}},
        "cameras": CONTRACT | {"cameras": ["left"]},
        "action_parts": CONTRACT | {"joint_names": ["a"]},
    }.items():
        refuses(f"^contract: {key}: ", save_checkpoint, tmp_path / "p", policy, contract)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("precious")
    refuses("expected a new folder or a checkpoint", save_checkpoint, tmp_path / "home", policy, CONTRACT)
    assert (tmp_path / "home/thesis.tex").read_text() == "precious" and os.listdir(tmp_path) == ["home"]


def test_invalid_checkpoints_are_rejected(tmp_path):
    fresh = save_checkpoint(tmp_path / "p", make_policy(), CONTRACT)
    tensors, record = fresh / "policy.safetensors", fresh / "policy.json"
    content, text = tensors.read_bytes(), record.read_text()
    about = json.loads(text)

    def assert_rejected(words, **changes):
        if changes:
            record.write_text(json.dumps({k: v for k, v in (about | changes).items() if v is not None}))
        refuses(words, load_checkpoint, fresh)
        record.write_text(text)

    def replace_tensors(data):
        tensors.write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    for path in (tmp_path / "none", record):
        refuses("folder", load_checkpoint, path)
    tensors.unlink()
    assert_rejected("policy.safetensors is missing")
    tensors.write_bytes(content[: len(content) // 2])
    assert_rejected("policy.safetensors: expected sha256")
    assert_rejected("policy.safetensors: ", tensors_sha256=replace_tensors(b"no tensors"))
    save_file(make_policy().state_dict() | {"extra": torch.zeros(1)}, tensors)
    assert_rejected("tensor: extra: expected None", tensors_sha256=replace_tensors(tensors.read_bytes()))
    tensors.write_bytes(content)
    record.write_text(text[: len(text) // 2])
    assert_rejected("policy.json: ")
    assert_rejected("schema: expected 2, got 99", schema=99)
    assert_rejected("policy.json: spec: ", spec=None)
    for key, wrong in {"rate_hz": "ten", "cameras": 3, "dataset": [], "encoder": {"fingerprint": 0}}.items():
        assert_rejected(f"contract: {key}.*: expected", contract=CONTRACT | {key: wrong})
    assert_rejected("action_parts: expected .*, got 7", contract=CONTRACT | {"action_parts": 7})
    assert_rejected("contract: cameras: expected", contract=CONTRACT | {"cameras": CONTRACT["cameras"][::-1]})
    shorter = make_policy(chunk=2).spec.to_dict()
    assert_rejected(r"tensor: .*: expected \[(16|2)[,\]].*, got \[(32|4)[,\]]", spec=shorter)
    assert_rejected("tensor: .*: expected .*, got ", spec=make_policy(kind="transformer").spec.to_dict())
    huge = about["spec"] | {"chunk": 10**12}  # nothing is allocated
    assert_rejected("tensor: .*: expected .*, got ", spec=huge)
    assert_rejected("policy.json: spec.chunks: unknown key", spec=about["spec"] | {"chunks": 3})
    assert load_checkpoint(fresh)


def test_check_contract():
    same = {"cameras": ["left", "right", "hand"], "robot": "xarm7", "rate_hz": 10.0}
    check_contract(CONTRACT, encoder="abc123", action_frame="joint_delta_commanded", **same)
    check_contract(CONTRACT, encoder=CONTRACT["encoder"], joint_names=tuple(CONTRACT["joint_names"]))
    others = {"robot": "panda", "rate_hz": 20, "joint_names": ["a"], "cameras": ["hand"], "encoder": "fff"}
    patterns = {"cameras": "'left'", "joint_names": "joint_names", "encoder": "abc123.*fff"}
    for key, other in [*others.items(), ("encoder", {"name": "base", "fingerprint": "fff"})]:
        refuses(patterns.get(key, str(other)), check_contract, CONTRACT, **{key: other})


def test_writing_the_card_changes_only_the_card(tmp_path):
    parts = [{"name": "arm", "size": 7, "kind": "delta"}, {"name": "gripper", "size": 1, "kind": "binary"}]
    policy = make_policy(action_parts=tuple(parts))
    folder = save_checkpoint(tmp_path / "a", policy, CONTRACT | {"action_parts": parts})
    loaded, contract = load_checkpoint(folder)
    assert loaded.spec == policy.spec and contract["action_parts"] == parts
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    text = before["README.md"].decode()
    assert "float32 (8,)" in text and "arm (7 delta), gripper (1 binary)" in text
    summary = {"success": 0.992, "low": 0.957, "high": 0.999, "episodes": 128}
    write_card(folder, summary | {"policy": {"parameters": 1_250_000}})
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    text = after["README.md"].decode()
    head = yaml.safe_load(text.split("---\n", 2)[1])
    assert (head["library_name"], head["pipeline_tag"]) == ("s2robot", "robotics") and "xarm7" in head["tags"]
    assert all(figure in text for figure in ("99.2 %", "128 ", "95.7–99.9 %", "1.25 M"))
    assert after == before | {"README.md": after["README.md"]}
