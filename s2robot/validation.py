"""`s2robot validate`: a policy's predictions for episodes that it was not trained on. Needs no simulator.

s2robot validate checkpoint=runs/train/<date>/checkpoint                     # what its training held out
s2robot validate checkpoint=runs/train/<date>/checkpoint demos.path=aloha    # all of other data
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from s2robot.common.errors import UserError
from s2robot.common.files import write_json
from s2robot.common.progress import bar
from s2robot.common.ranges import INFINITY, check_ranges
from s2robot.common.settings import DemosSettings, path_of, plain, read
from s2robot.core.provenance import command, policy_sha256, versions
from s2robot.demos.lineage import Lineage
from s2robot.demos.selection import numbers
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.cameras import token_maps
from s2robot.encoders.encoder import S2Encoder
from s2robot.evaluation.open_loop import mean_action, measure, predict, remembered_mean
from s2robot.evaluation.validation import summarise, write_csv
from s2robot.evaluation.validation_page import Episode, worst_first, write_pages
from s2robot.features import FeaturesSettings, encode_demos, frame_sizes
from s2robot.loading import device_of, load_networks
from s2robot.policies import BatchActor, ChunkPolicy, PolicyError, check_contract


@dataclass(frozen=True)
class ValidateSettings:
    """configs/validate.yaml says what each is."""

    pages: int = 20
    parallel: int = 16
    device: str = "auto"

    def __post_init__(self) -> None:
        check_ranges(self, "validate", pages=(0, INFINITY), parallel=(1, INFINITY))


def validate(cfg: DictConfig) -> None:
    """`s2robot validate`: validation.json, validation.csv, report.html and a page an episode."""
    if cfg.checkpoint is None:
        raise UserError("checkpoint: found none, expected the folder of a trained policy")
    settings, checkpoint = read(ValidateSettings, cfg.validate, "validate"), path_of(cfg, "checkpoint")
    one_or_more = {"episodes": _listed(plain(cfg.demos).get("episodes"))}  # a number is that episode, 0 too
    given = read(DemosSettings, plain(cfg.demos) | one_or_more, "demos")
    demos = given if given.name or given.path else _of_training(checkpoint)
    features = read(FeaturesSettings, cfg.features, "features")
    summary = validate_checkpoint(
        checkpoint,
        demos.open(),
        Path(cfg.run_dir),
        settings,
        features,
        given.episodes,
        cfg.encoder.checkpoint,
    )
    for name, text in summary["facts"]:
        if name == "unseen":
            print(f"note: {text}")
    print(f"\n{summary['verdict']}\nreport: {(Path(cfg.run_dir) / 'report.html').resolve()}")


def validate_checkpoint(
    checkpoint: Path,
    store: EpisodeStore,
    out: Path,
    settings: ValidateSettings | None = None,
    features: FeaturesSettings | None = None,
    episodes: Any = None,
    weights: str | Path | None = None,
) -> dict[str, Any]:
    """Validate a checkpoint on the episodes of a dataset that it was not trained on; writes into `out`, returns the summary.

    Args:
        episodes: only these of them, numbers and ranges as `demos.episodes` has them.
        weights: the encoder's weights file, if it lies elsewhere than at training time.

    Raises:
        UserError: nothing that is unseen, data of other parts, cameras or rate, and as `load_networks`.
    """
    settings = settings or ValidateSettings()
    policy, encoder, contract = load_networks(checkpoint, device_of(settings.device), weights)
    _check(store, contract, policy, encoder)
    lineage = Lineage.of(contract, checkpoint)
    trained = lineage.seen(store)
    chosen = _chosen(episodes, trained, store, checkpoint)
    dtype = contract["encoder"]["features_dtype"]
    encoded, _ = encode_demos(
        store, encoder, policy.spec.cameras, (features or FeaturesSettings()).replace(dtype=dtype)
    )
    actor = BatchActor(policy, min(settings.parallel, len(chosen)))
    with bar("predicting") as update:
        plans = predict(actor, store, encoded, chosen, lambda done, total: update(done, total, "episodes"))
    actions = store["action"]
    middle = _mean_action(policy, store, trained, chosen, contract)
    measured = measure(policy, store, plans, middle)
    summary = {
        **summarise(policy, measured),
        "facts": _facts(store, len(measured.episodes), lineage),
        "dataset": {
            "path": str(store.path),
            "fingerprint": store.fingerprint,
            "trained_on": bool(trained),
            "unseen": "unknown" if lineage.unknown else True,
        },
        "policy": {
            **policy.spec.to_dict(),
            "sha256": policy_sha256(checkpoint),
            "checkpoint": str(checkpoint),
        },
        "versions": versions(),
        "command": command(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "validation.json", summary)
    write_csv(out / "validation.csv", measured)
    shown = [
        Episode(i, actions[store.episode_slice(i)], plans[i]) for i in worst_first(measured)[: settings.pages]
    ]
    write_pages(out, summary, measured, policy.spec.action, float(contract["rate_hz"]), shown)
    return summary


def _listed(episodes: Any) -> Any:
    """A number alone is that episode here, not the first so many: those were trained on."""
    return [episodes] if isinstance(episodes, int) else episodes


def _chosen(episodes: Any, trained: list[int], store: EpisodeStore, checkpoint: Path) -> list[int]:
    """The wanted episodes (None: all) that are unseen; UserError names one that was trained on."""
    unseen = [i for i in range(len(store)) if i not in set(trained)]
    wanted = unseen if episodes is None else numbers(_listed(episodes), len(store), "demos.episodes")
    if seen := sorted(set(wanted) - set(unseen)):
        some = ", ".join(map(str, unseen[:10])) + (", ..." if len(unseen) > 10 else "")
        raise UserError(
            f"demos.episodes: expected some of the {len(unseen)} episodes of {store.path} that neither the policy nor an "
            f"ancestor was trained on ({some or 'none'}), got {seen[0]}"
        )
    if not wanted:
        raise UserError(
            f"{checkpoint}: trained on all {len(trained)} episodes of {store.path}, so none is held out: train with "
            "train.validation=0.1 or demos.split=<file>, or name other data with demos.path"
        )
    return wanted


def _mean_action(
    policy: ChunkPolicy,
    store: EpisodeStore,
    trained: list[int],
    chosen: list[int],
    contract: Mapping[str, Any],
) -> np.ndarray:
    """The mean action of the training, where all of its episodes are here; else what its normalisation knows.  # (A,)"""
    whole = len(trained) >= (contract.get("training") or {}).get("demos", 1)
    actions = store["action"]
    rows = np.concatenate([actions[store.episode_slice(i)] for i in (trained if whole else chosen)])
    return mean_action(policy, rows) if whole else remembered_mean(policy, rows)


def _facts(store: EpisodeStore, count: int, lineage: Lineage) -> list[tuple[str, Any]]:
    return [
        (
            "episodes",
            f"{count} that {'may be known' if lineage.unknown else 'neither it nor an ancestor was trained on'}",
        ),
        *([("unseen", lineage.note)] if lineage.unknown else []),
        ("data", store.path.name),
        ("rate", f"{store.attrs['rate_hz']:g} Hz"),
    ]


def _of_training(checkpoint: Path) -> DemosSettings:
    """The demos that the run folder of a checkpoint names; UserError where there is none."""
    noted = checkpoint.resolve().parent / ".hydra"
    try:
        told: Any = OmegaConf.load(noted / "config.yaml")
        found = dict(plain(told.demos))
        if told.get("record") is True:  # `s2robot run record=true` chooses them after the config is noted
            found["path"] = str(noted.parent / "demos.zarr")
        where = Path(OmegaConf.load(noted / "hydra.yaml").hydra.runtime.cwd)
        mixed = [dict(each) for each in found.get("mix") or []]
    except (OSError, AttributeError, ValueError, TypeError, YAMLError):  # none, or damaged
        raise UserError(
            f"{checkpoint}: no run folder around it that names its demos, expected demos.path=<the dataset>"
        ) from None
    for each in [found, *mixed]:
        each |= {"path": str(where / each["path"])} if each.get("path") else {}
    found |= {"mix": mixed or None}
    whole = ("name", "path", "mask", "rate_hz", "mix")  # which episodes were trained on, the checkpoint says
    return read(DemosSettings, {key: found[key] for key in whole if key in found}, "demos")


def _check(store: EpisodeStore, contract: Mapping[str, Any], policy: ChunkPolicy, encoder: S2Encoder) -> None:
    """Refuse data that the policy cannot be asked about."""
    about = store.attrs
    ours = {} if "source" in about else {"robot": store.robot}  # others name a robot as they like
    try:
        check_contract(
            contract,
            cameras=store.cameras,
            action_frame=about["action_frame"],
            rate_hz=about["rate_hz"],
            action_parts=about.get("action_parts"),
            proprio_parts=about.get("proprio_parts"),
            **ours,
        )
    except PolicyError as error:
        raise UserError(f"{store.path}: {error}") from None
    sizes = frame_sizes(store, encoder, policy.spec.cameras)
    wanted = policy.spec.maps
    for i, (name, found) in enumerate(zip(sizes, token_maps(encoder, sizes), strict=True)):
        side = round(wanted**0.5) if isinstance(wanted, int) else 0
        own = (side, side) if isinstance(wanted, int) else tuple(wanted[i])
        if tuple(found) != own:
            raise UserError(
                f"{store.path}: camera '{name}' has {sizes[name][0]} x {sizes[name][1]} px, {found[0]} x {found[1]} "
                f"tokens; the policy's demos had {own[0]} x {own[1]} tokens"
            )
