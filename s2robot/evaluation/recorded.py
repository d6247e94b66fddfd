"""`s2robot evaluate evaluate=recorded`: open-loop evaluation on episodes that a policy was not trained on, without a simulator.

    s2robot evaluate evaluate=recorded checkpoint=runs/train/<date>/checkpoint                     # held-out episodes
    s2robot evaluate evaluate=recorded checkpoint=runs/train/<date>/checkpoint demos.path=aloha    # other data

The run directory holds open_loop.json (all figures) and report.html.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from omegaconf import DictConfig, OmegaConf

from s2robot.config import CHOSEN, DemosSettings
from s2robot.core.errors import UserError, check_same, reported
from s2robot.core.files import write_json
from s2robot.core.parts import number_names
from s2robot.core.progress import bar
from s2robot.core.provenance import command, policy_sha256, versions
from s2robot.core.settings import Settings, from_yaml, plain, read
from s2robot.demos.binding import filled, names_no_world
from s2robot.demos.lineage import Lineage
from s2robot.demos.selection import numbers
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.encoder import S2Encoder, token_maps
from s2robot.evaluation.open_loop import METHODS, WORDS, Measured, mean_action, measure, predict, summarise
from s2robot.features import FeaturesSettings, encode_demos, frame_sizes
from s2robot.loading import device_of, load_networks
from s2robot.policies import BatchActor, ChunkPolicy, check_contract
from s2robot.policies.parts import Parts
from s2robot.reporting import page, plots
from s2robot.reporting.style import BLUE, GREEN, INK, ORANGE

_LOOK = {"policy": (BLUE, "-"), "repeat": (ORANGE, (0, (4, 2))), "mean": (GREEN, (0, (1, 1.5)))}
_ABOUT = (
    "Figures cover the {} executed actions of each chunk. Error: mean absolute difference in the part's unit, or the angle of a "
    "rotation. Normalised: divided by the spread in the training demos. Of repeating, of the mean: the policy's error relative "
    "to that baseline's error. Intervals are over episodes (jackknife, Student's t)."
)
_UNNAMED = "its run directory does not name its demos, expected demos.path=<the dataset>"


class RecordedSettings(Settings, at="evaluate", file="evaluate/recorded"):
    world: Literal["recorded"] = from_yaml()
    plots: int = from_yaml(ge=0)
    parallel: int = from_yaml(ge=1)
    device: str = from_yaml()
    task_vectors: str | None = from_yaml()


def evaluate_recorded(cfg: DictConfig, checkpoint: Path, out: Path) -> dict[str, Any]:
    """Evaluate a checkpoint on the episodes of a dataset that it was not trained on, and write the results into `out`.

    UserError if there is no such episode, if the data have other parts, cameras or rate, and as `load_networks`.
    """
    settings = read(RecordedSettings, cfg.evaluate, "evaluate")
    typed = read(DemosSettings, plain(cfg.demos), "demos")
    demos = typed if typed.name or typed.path else _of_training(checkpoint)
    only = typed.episodes if demos.foreign else None  # the others may be damaged, or many
    store = demos.replace(episodes=only).open()
    files = cfg.encoder.checkpoint, settings.task_vectors
    policy, encoder, contract = load_networks(checkpoint, device_of(settings.device), *files)
    known = {"dtype": contract["encoder"]["features_dtype"], "augment": 0}
    features = read(FeaturesSettings, plain(cfg.features) | known, "features")
    _check(store, contract, policy, encoder)
    trained = (lineage := Lineage.of(contract, checkpoint)).seen(store)
    if not (trained or lineage.unknown or demos is typed):  # another command ran in the same folder since
        raise UserError(f"{checkpoint}: {_UNNAMED}")
    asked = typed.episodes if only is None else list(range(len(store)))
    chosen = _chosen(asked, trained, store, checkpoint)
    encoded, _ = encode_demos(store, encoder, policy.spec.cameras, features, np.array(chosen))
    actor = BatchActor(policy, min(settings.parallel, len(chosen)))
    with bar("predicting", "episodes") as update:
        plans = predict(actor, store, encoded, chosen, update)
    actions = store["action"]  # baseline: the mean over training episodes, or else over the predicted ones
    rows = np.concatenate([actions[store.episode_slice(i)] for i in trained or chosen])
    measured = measure(policy, store, plans, mean_action(policy, rows))
    unseen = {"unseen": "unknown", "note": lineage.note} if lineage.unknown else {"unseen": True}
    about = {"path": str(store.path), "fingerprint": store.fingerprint, "rate_hz": store.attrs["rate_hz"]}
    summary = {
        **summarise(policy, measured),
        "dataset": {**about, "trained_on": bool(trained), **unseen},
        "policy": policy.spec.to_dict()
        | {"sha256": policy_sha256(checkpoint), "checkpoint": str(checkpoint)},
        **{"versions": versions(), "command": command()},
    }
    write_json(out / "open_loop.json", summary)
    worst = [measured.episodes[i] for i in measured.worst_first()[: settings.plots]]
    shown = [_episode(i, plans[i], policy.spec.action, store) for i in worst]
    _write_report(out / "report.html", summary, measured, shown)
    note = f"note: {lineage.note}\n" if lineage.unknown else ""
    print(f"{note}\n{summary['verdict']}\nreport: {(out / 'report.html').resolve()}")
    return summary


def _chosen(episodes: Any, trained: list[int], store: EpisodeStore, checkpoint: Path) -> list[int]:
    """Return the requested episodes (None: all unseen ones). UserError if the policy was trained on one, or none are left."""
    unseen = [i for i in range(len(store)) if i not in set(trained)]
    ranges = f":{episodes}" if isinstance(episodes, int) else episodes  # 40: the first 40, as for other verbs
    chosen = unseen if ranges is None else numbers(ranges, len(store), "demos.episodes")
    seen = sorted(set(chosen) - set(unseen))
    if seen or not chosen:
        listed = ", ".join(map(str, unseen[:10])) + (", ..." if len(unseen) > 10 else "")
        listed = listed or "none; train.validation=0.1 holds some out"
        which = f"the {len(unseen)} episodes of {store.path} that neither {checkpoint} nor an ancestor was trained on"
        got = seen[0] if seen else "none"
        raise UserError(f"demos.episodes: expected some of {which} ({listed}), got {got}")
    return chosen


def _of_training(checkpoint: Path) -> DemosSettings:
    """Return the demos named in the checkpoint's run directory; UserError if there is none."""
    config = checkpoint.resolve().parent / ".hydra"
    with reported(f"{checkpoint}: {_UNNAMED}"):  # missing or damaged
        stored: Any = OmegaConf.load(config / "config.yaml")
        found = dict(plain(stored.demos))
        if stored.get("record") is True:  # `s2robot run record=true` sets the path after writing the config
            found["path"] = str(config.parent / "demos.zarr")
        where = Path(OmegaConf.load(config / "hydra.yaml").hydra.runtime.cwd)
        mixed = [dict(each) for each in found.get("mix") or []]
    for each in [found, *mixed]:
        each |= {"path": str(where / each["path"])} if each.get("path") else {}
    found |= {"mix": mixed or None}
    keys = ("name", "path", "mix", "clip", *CHOSEN)  # not `episodes`: the checkpoint stores those
    return read(DemosSettings, {key: found[key] for key in keys if key in found}, "demos")


def _check(store: EpisodeStore, contract: Mapping[str, Any], policy: ChunkPolicy, encoder: S2Encoder) -> None:
    about = store.attrs
    if names_no_world(about) and contract["env_config"]:
        about = filled(about, contract, store.path)
    robot = {} if "source" in about else {"robot": about["robot"]}  # imported data use other names
    keys = ("action_frame", "rate_hz", "action_parts", "proprio_parts")
    check_contract(contract, cameras=store.cameras, **{key: about.get(key) for key in keys}, **robot)
    sizes = frame_sizes(store, encoder, policy.spec.cameras)
    both = (dict(zip(sizes, maps, strict=True)) for maps in (policy.spec.shapes, token_maps(encoder, sizes)))
    check_same(f"{store.path}: tokens of a camera", next(both), next(both), " as in the policy's demos")


def _write_report(
    path: Path, summary: Mapping[str, Any], measured: Measured, shown: list[page.Section]
) -> None:
    heads = ("part", "", "policy", "[95 %]", "of repeating", "[95 %]", "of the mean", "[95 %]")
    overall = {"part": "all", "measure": "normalised", "unit": "", **(summary["overall"] or {})}
    rows = [_row(part) for part in [*summary["parts"], *([overall] if summary["overall"] else [])]]
    values = {method: measured.values(method, measured.ranking) for method in METHODS}
    episodes = [
        [str(measured.episodes[i]), str(measured.counts[i, 0]), *(f"{values[m][i]:.3f}" for m in METHODS)]
        for i in measured.worst_first()
    ]
    steps = plots.curves([_by_step(part, summary["execute"]) for part in summary["parts"]])
    settings = [row for key in ("policy", "dataset", "versions") for row in page.flatten(key, summary[key])]
    reproduce = [("code", summary["command"]), ("settings", "All settings", settings)]
    sections = [
        page.Section("By part", [("table", heads, rows, 2), ("note", _ABOUT.format(summary["execute"]))]),
        page.Section("By step of the chunk", [page.figure(steps, "chunk", "Errors by step")], "wide"),
        page.Section("Episodes", [("table", ("episode", "steps", *WORDS.values()), episodes, 0)]),
        *shown,
        page.Section("Settings and versions", reproduce),
    ]
    facts = [(key, summary["dataset"][key]) for key in ("unseen", "path", "rate_hz")]
    head: list[page.Block] = [("headline", "Open loop:", summary["verdict"]), ("facts", facts)]
    page.write_report_page(path, f"open loop: {summary['verdict']}", head, sections)


def _row(part: Mapping[str, Any]) -> list[str]:
    cells = [part["part"], f"{part['measure']} {part['unit']}"]
    for figure in map(part.get, ("policy", "of_repeat", "of_mean")):  # accuracies have no ratios
        value, low, high = (None if figure is None else figure[key] for key in ("value", "low", "high"))
        cells += ["–" if value is None else f"{value:.3g}", "–" if low is None else f"{low:.3g}–{high:.3g}"]
    return cells


def _by_step(part: Mapping[str, Any], execute: int) -> plots.Panel:
    lines = []
    for method, (colour, dashes) in _LOOK.items():
        y = [np.nan if v is None else v for v in part["by_step"][method]]
        lines.append(plots.Line(range(1, len(y) + 1), y, WORDS[method], colour, style={"ls": dashes}))
    title = f"{part['part']}: {part['measure']} {part['unit']}"
    return plots.Panel(title, lines, "step of the chunk; shaded: executed", shaded=(0.5, execute + 0.5))


def _episode(number: int, plan: np.ndarray, parts: Parts, store: EpisodeStore) -> page.Section:
    """Plot each action dimension over time: recorded, the first action of each chunk, and every chunk-th full chunk."""
    steps, chunk = plan.shape[:2]
    time, actions = np.arange(steps) / store.attrs["rate_hz"], store["action"][store.episode_slice(number)]
    panels, thin = [], {"lw": 1, "marker": None}
    for dim, name in enumerate(number_names(parts.parts)):
        lines = [plots.Line(time, actions[:, dim], "recorded", INK)]
        for t in range(0, steps if chunk > 1 else 0, chunk):
            y = plan[t, : steps - t, dim]
            lines.append(plots.Line(time[t : t + chunk], y, "full chunk", ORANGE, style=thin))
        lines.append(plots.Line(time, plan[:, 0, dim], "predicted", BLUE, style=thin))
        panels.append(plots.Panel(name, lines, "time (s)"))
    figure = page.figure(plots.curves(panels), f"episode{number}", "Recorded and predicted actions over time")
    return page.Section(f"Episode {number}", [figure], "wide")
