"""`train.from`: a training that begins with another policy's weights and normalisation.

    s2robot train train.from=runs/train/<date>/checkpoint demos.path=more.zarr

The other policy must be of the same spec and contract: the same networks, encoder, cameras and robot. What only
decides how it is trained or executed may differ.
"""

from collections.abc import Mapping
from typing import Any

from s2robot.common.errors import UserError
from s2robot.policies import ChunkPolicy, PolicyError, PolicySpec, check_contract, load_checkpoint

# of a spec, what no weight depends on
_FREE = {
    "execute", "ensemble", "binary_gripper", "joint_loss", "huber_delta", "gripper_weight", "loss_discount",
    "proprio_noise", "proprio_dropout", "pooling.feature_noise", "pooling.token_dropout", "pooling.feature_dropout",
    "head.kl_weight", "head.steps",
}  # fmt: skip


def begin_from(policy: ChunkPolicy, checkpoint: str, contract: Mapping[str, Any]) -> None:
    """Give the policy the weights and the normalisation of a checkpoint (its averaged weights).

    Raises:
        UserError: no checkpoint, or one of another spec, encoder, robot, action frame or rate.
    """
    try:
        other, theirs = load_checkpoint(checkpoint)
        _check_spec(other.spec, policy.spec)
        check_contract(
            theirs,
            **{key: contract[key] for key in ("encoder", "robot", "joint_names", "action_frame", "rate_hz")},
        )
    except PolicyError as error:
        raise UserError(f"train.from: {checkpoint}: {error}") from error
    policy.load_state_dict(other.state_dict())


def _check_spec(theirs: PolicySpec, ours: PolicySpec) -> None:
    """Refuse the first setting that differs, by its dotted key."""
    found, wanted = _flat(theirs.to_dict()), _flat(ours.to_dict())
    for key in {**wanted, **found}:
        if found.get(key) != wanted.get(key) and key not in _FREE:
            raise PolicyError(f"has policy.{key} {found.get(key)}, this run has {wanted.get(key)}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
