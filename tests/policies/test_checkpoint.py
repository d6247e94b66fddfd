import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from s2robot.policies import PolicyError, check_contract, load_checkpoint, save_checkpoint

CONTRACT = {
    "encoder": {"name": "tiny", "fingerprint": "abc123", "scales": [1, 2]},
    "cameras": ["hand", "left"],
    "camera_geometry": {"hand": {"fovy": 60.0}, "left": {"fovy": 45.0}},
    "robot": "xarm7",
    "joint_names": [f"joint{i}" for i in range(1, 8)],
    "action_frame": "joint_delta_commanded",
    "rate_hz": 10,
    "dataset": {"name": "demos", "fingerprint": "d0", "episodes": 120},
}


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_round_trip_is_bit_exact(tmp_path, make_policy, make_batch, kind):
    policy = make_policy(kind=kind, context=2, action_target="cumulative")
    save_checkpoint(tmp_path / "best", policy, CONTRACT)
    loaded, contract = load_checkpoint(tmp_path / "best")
    assert loaded.spec == policy.spec and not loaded.training
    assert {k: contract[k] for k in CONTRACT} == CONTRACT and set(contract["versions"]) == {
        "python",
        "torch",
        "numpy",
    }
    for name, tensor in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    batch = make_batch(policy)
    keys = ("features", "proprio", "past_actions", "pad")
    assert torch.equal(loaded.plan(*(batch[k] for k in keys)), policy.plan(*(batch[k] for k in keys)))
    assert sorted(os.listdir(tmp_path)) == ["best"]
    assert sorted(os.listdir(tmp_path / "best")) == ["README.md", "policy.json", "policy.safetensors"]


def test_replacing_never_leaves_none(tmp_path, make_policy, monkeypatch):
    folder = tmp_path / "last"
    old, new = make_policy(), make_policy(chunk=2)
    save_checkpoint(folder, old, CONTRACT)
    real = os.replace
    for fail_at in (0, 1):  # killed before the first rename, and between the two
        calls = []

        def replace(source, target, fail_at=fail_at, calls=calls):
            if len(calls) == fail_at:
                raise KeyboardInterrupt
            calls.append(source)
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, new, CONTRACT)
        assert load_checkpoint(folder)[0].spec.chunk == 4
    monkeypatch.setattr(os, "replace", real)
    save_checkpoint(folder, new, CONTRACT)
    assert load_checkpoint(folder)[0].spec.chunk == 2
    assert os.listdir(tmp_path) == ["last"]


def test_saving_refuses(tmp_path, make_policy):
    policy = make_policy()
    for key in ("encoder", "robot", "rate_hz"):
        with pytest.raises(PolicyError, match=f"^contract: {key}: "):
            save_checkpoint(tmp_path / "p", policy, {k: v for k, v in CONTRACT.items() if k != key})
    with pytest.raises(PolicyError, match=r"encoder\.fingerprint"):
        save_checkpoint(tmp_path / "p", policy, CONTRACT | {"encoder": {"name": "tiny"}})
    with pytest.raises(PolicyError, match=r"cameras are \['left'\], the policy's are \['hand', 'left'\]"):
        save_checkpoint(tmp_path / "p", policy, CONTRACT | {"cameras": ["left"]})
    for value in (float("nan"), np.float32(1)):
        with pytest.raises(PolicyError, match="not plain JSON"):
            save_checkpoint(tmp_path / "p", policy, CONTRACT | {"training": {"loss": value}})
    policy.normaliser.fitted.fill_(False)
    with pytest.raises(PolicyError, match="never fitted"):
        save_checkpoint(tmp_path / "p", policy, CONTRACT)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    with pytest.raises(PolicyError, match="is no checkpoint"):
        save_checkpoint(tmp_path / "home", make_policy(), CONTRACT)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "precious"
    assert os.listdir(tmp_path) == ["home"]


def test_loading_refuses(tmp_path, make_policy):
    def fresh():
        return save_checkpoint(tmp_path / "p", make_policy(), CONTRACT)

    def edit(**changes):
        path = fresh() / "policy.json"
        record = json.loads(path.read_text())
        record.update(changes)
        path.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))

    def refuse(words):
        with pytest.raises(PolicyError, match=words) as caught:
            load_checkpoint(tmp_path / "p")
        assert "\n" not in str(caught.value)

    refuse("no such folder")
    with pytest.raises(PolicyError, match=r"policy.json: a file, expected its folder .*/p$"):
        load_checkpoint(fresh() / "policy.json")
    (fresh() / "policy.safetensors").unlink()
    refuse("policy.safetensors is missing")
    tensors = fresh() / "policy.safetensors"
    os.truncate(tensors, tensors.stat().st_size // 2)
    refuse("policy.safetensors: sha256 is .* truncated or of another checkpoint")
    record = fresh() / "policy.json"
    os.truncate(record, record.stat().st_size // 2)
    refuse("policy.json: not valid JSON")
    edit(schema=99)
    refuse("schema: expected 2, got 99")
    edit(spec=None)
    refuse("policy.json: spec: ")
    edit(contract={k: v for k, v in CONTRACT.items() if k != "robot"})
    refuse("contract: robot: expected a value")
    for key, wrong in (("rate_hz", "ten"), ("cameras", 3), ("robot", 7), ("dataset", [])):
        edit(contract=CONTRACT | {key: wrong})
        refuse(f"contract: {key}: ")
    edit(contract=CONTRACT | {"encoder": {"fingerprint": None}})
    refuse("contract: encoder.fingerprint: ")
    edit(contract=CONTRACT | {"action_parts": 7})
    refuse("action_parts: expected a list of parts, got 7")
    edit(contract=CONTRACT | {"cameras": CONTRACT["cameras"][::-1]})
    refuse("contract: cameras are .*, the policy's are")
    edit(tensors_sha256=7)
    refuse("policy.json: tensors_sha256: ")
    edit(spec=make_policy(chunk=2).spec.to_dict())
    refuse(r"tensor '.*' has shape \((32|4),.*\), expected \((16|2),.*\)")
    edit(spec=make_policy(kind="transformer").spec.to_dict())
    refuse("tensor '.*' is missing")
    edit(spec=make_policy().spec.to_dict() | {"chunks": 3})
    refuse(r"policy.json: spec.chunks: unknown key")


def test_tensors_of_another_format(tmp_path, make_policy):
    import hashlib

    folder = save_checkpoint(tmp_path / "p", make_policy(), CONTRACT)
    state = make_policy().state_dict() | {"extra": torch.zeros(1)}
    for write, words in [
        (lambda path: save_file(state, path), "tensor 'extra' is not part"),
        (lambda path: path.write_bytes(b"no tensors"), "not a safetensors file"),
    ]:
        write(folder / "policy.safetensors")
        record = json.loads((folder / "policy.json").read_text())
        record["tensors_sha256"] = hashlib.sha256((folder / "policy.safetensors").read_bytes()).hexdigest()
        (folder / "policy.json").write_text(json.dumps(record))
        with pytest.raises(PolicyError, match=words):
            load_checkpoint(folder)


def test_check_contract():
    same = {"cameras": ["left", "right", "hand"], "robot": "xarm7", "rate_hz": 10.0}
    check_contract(CONTRACT, encoder="abc123", action_frame="joint_delta_commanded", **same)
    check_contract(
        CONTRACT, encoder={"name": "tiny", "fingerprint": "abc123"}, joint_names=CONTRACT["joint_names"]
    )
    for actual, words in [
        (
            {"encoder": {"name": "base", "fingerprint": "fff"}},
            "encoder tiny abc123, the one given is base fff",
        ),
        ({"encoder": "fff"}, "abc123, the one given is fff"),
        ({"cameras": ["hand"]}, "needs cameras hand, left, given are hand: 'left' is missing"),
        ({"robot": "panda"}, "robot 'xarm7', given is 'panda'"),
        ({"action_frame": "pose"}, "action_frame 'joint_delta_commanded', given is 'pose'"),
        ({"rate_hz": 20}, "acts at 10 Hz, given are 20 Hz"),
        ({"joint_names": ["a"]}, "joint_names"),
        ({"colour": 1}, "unknown key 'colour'"),
    ]:
        with pytest.raises(PolicyError, match=words):
            check_contract(CONTRACT, **actual)
