"""Find anomalies in a dataset; each rule has its thresholds in `configs/inspect.yaml`."""

from collections.abc import Iterator, Sequence

import numpy as np

from s2robot.inspection.subtle_faults import FEW, LATE_STEPS, MAX_EPISODES, MIN_EPISODES, subtle_faults
from s2robot.inspection.tables import Columns, Finding, Frames, Table, Thresholds, episodes_of

# kind -> its description on the page
KINDS = {
    "frozen": "identical images (compressed video: byte by byte) while the state moves",
    "blank": "images that are black, white or a single colour",
    "clock": "time stamps that are not one control step apart",
    "jump": "steps in which the state changes far more than usual",
    "saturated": "actions that stay at their limit for many steps",
    "gripper": "a gripper that does not move for a whole episode",
    "length": "episodes far shorter or longer than the others",
    "constant": "numbers that are equal in all steps",
    "offset": "commands at a constant distance from the state that follows them, in all episodes or, given ten or more, in some",
    "late": "a video that is out of sync with the state in all episodes, where its changes follow the state",
    "duplicate": "near-duplicate episodes, which leak between splits",
    "units": "numbers many times larger or smaller than in other episodes",
    "dead": "numbers that are constant in one episode but move in at least nine of ten",
    "ends early": "episodes that end in motion, where most others end at rest",
}
MANY = 5  # findings of one kind and subject per episode; more are merged into one
CLOCKS = ("timestamp", "timestamps", "time")  # keys of time stamps in s
GRIPPERS = ("grip", "claw", "opening")  # words in the names of gripper numbers


def find(
    tables: Sequence[Table], ends: np.ndarray, rate: float, frames: Frames, limits: Thresholds
) -> list[Finding]:
    """Return all anomalies, ordered by kind, episode and step; ``ends``: ends of the episodes, (episodes,)."""
    named, rank = {table.key: table for table in tables}, {kind: i for i, kind in enumerate(KINDS)}
    findings = [*_lengths(ends, limits), *_constant(tables)]
    findings += _blank(frames, limits)
    if (state := named.get("proprio")) is not None:
        findings += [*_jumps(state, ends, limits), *_frozen(state, ends, frames, limits)]
    if (action := named.get("action")) is not None:
        findings += [*_saturated(action, ends, limits), *_grippers(action, ends, limits)]
    for key in named.keys() & set(CLOCKS):
        findings += _clock(key, named[key].values[:, 0], ends, rate, limits.clock)
    findings += subtle_faults(tables, ends, frames, limits)
    findings.sort(key=lambda f: (rank[f.kind], -1 if f.episode is None else f.episode, f.step))
    # merge many findings about one subject in an episode: a camera at half the rate always freezes
    groups: dict[tuple, list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.kind, one.episode, one.text.partition(":")[0]), []).append(one)
    for subject, group in groups.items():
        if len(group) > MANY:
            until = group[-1].step + group[-1].steps - 1
            text = f"{group[0].text}; {len(group) - 1} more until step {until}"
            groups[subject] = [group[0]._replace(text=text)]
    return [one for group in groups.values() for one in group]


def unchecked_kinds(tables: Sequence[Table], ends: np.ndarray, frames: Frames) -> dict[str, str]:
    """Return the kinds (joined by commas) that `find` cannot check, with the reason."""
    keys, actions = {table.key for table in tables}, [table for table in tables if table.key == "action"]
    parts, count = [part for table in actions for part in table.parts], len(ends)
    checks = {
        "frozen, blank, late": (frames, "no videos were made"),
        "clock": (keys.intersection(CLOCKS), f"no key {' or '.join(CLOCKS)}"),
        "frozen, jump, offset, late, duplicate, dead, ends early": ("proprio" in keys, "no key proprio"),
        "jump": (count > 1, "a single episode, with none to compare"),
        "saturated": (any(part.limits is not None for part in parts), "the limits of the action are unknown"),
        "gripper": (any(map(_gripper_columns, actions)), "no part is binary or named as a gripper"),
        "late": (not frames or max(np.diff([0, *ends])) >= LATE_STEPS, f"no episode has {LATE_STEPS} steps"),
        "offset": (any(part.kind in ("absolute", "") for part in parts), "actions are steps, not targets"),
        "units, duplicate, ends early": (count >= MIN_EPISODES, f"fewer than {MIN_EPISODES} episodes"),
        "dead": (count >= FEW, f"fewer than {FEW} episodes"),
        "duplicate": (count <= MAX_EPISODES, f"more than {MAX_EPISODES} episodes"),
    }
    return {kind: why for kind, (known, why) in checks.items() if not known}


def _runs(where: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each run of True in a mask (T,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], where.astype(np.int8), [0]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _lengths(ends: np.ndarray, limits: Thresholds) -> Iterator[Finding]:
    lengths = np.diff(ends, prepend=0)
    median = float(np.median(lengths))
    for i, length in enumerate(lengths.tolist()):
        if not limits.short * median <= length <= limits.long * median:
            yield Finding("length", f"{length} steps, the median is {median:g}", i, 0, length)


def _constant(tables: Sequence[Table]) -> Iterator[Finding]:
    for table in tables:
        same = (table.values == table.values[:1]).all(0)
        if len(table.values) > 1 and same.any():
            values = sorted({f"{x:.4g}" for x in table.values[0, same]})
            value = values[0] if len(values) == 1 else "one value each"
            yield Finding("constant", f"{table.key}: {_names(table, same)} ({value})")


def _jumps(state: Table, ends: np.ndarray, limits: Thresholds) -> Iterator[Finding]:
    """Yield steps much larger than the largest step of a usual episode, and large relative to the number's spread.

    Only the part of a step beyond its neighbouring steps counts, because a swinging arm is fast for several steps. The
    usual size is the lower median of the largest steps of all episodes, so a gripper that always closes in one step does
    not jump. A single episode cannot be compared.
    """
    span = np.ptp(state.values, axis=0)
    turn = np.zeros(len(span))  # full turn of a column of angles, which may wrap within a step
    for full in (2 * np.pi, 360.0):
        turn[(span > 0.9 * full) & (span <= 1.001 * full)] = full
    steps = [np.diff(own, axis=0) for own in episodes_of(state.values.astype(np.float64), ends)]
    steps = [own - turn * np.round(own / np.where(turn, turn, np.inf)) for own in steps]
    largest = [np.abs(own).max(0) for own in steps if len(own)]
    if len(largest) < 2:
        return
    usual = np.quantile(np.array(largest), 0.5, axis=0, method="lower")  # (columns,)
    bound = np.maximum(limits.jump_times * usual, limits.jump_share * state.spread())
    for i, own in enumerate(steps):
        # example: 1 3 1 -2 exceed their neighbours in the same direction by 0 2 0 2
        around = np.pad(own, ((1, 1), (0, 0)))
        neighbours = np.maximum(np.sign(own) * around[:-2], np.sign(own) * around[2:])
        excess = np.maximum(np.abs(own) - np.maximum(neighbours, 0), 0)  # (T, columns)
        for t in np.flatnonzero((excess > bound).any(1)).tolist():
            which = excess[t] > bound
            worst = int(np.argmax(np.where(which, excess[t] / np.maximum(bound, 1e-12), 0)))
            by = f"by {abs(own[t, worst]):.3g} in a step, usual episodes by at most {usual[worst]:.3g}"
            yield Finding("jump", f"{_names(state, which)}: {by}", i, t + 1)


def _frozen(state: Table, ends: np.ndarray, frames: Frames, limits: Thresholds) -> Iterator[Finding]:
    spread = np.where(state.spread() > 0, state.spread(), np.inf)
    for i, (own, cameras) in enumerate(zip(episodes_of(state.values, ends), frames, strict=False)):
        for camera, seen in cameras.items():
            still = seen.change <= limits.frozen_change
            still[0] = False
            for start, end in _runs(still):
                moved = float((np.ptp(own[start - 1 : end], axis=0) / spread).max())
                count = end - start + 1
                if count > limits.frozen_steps and moved >= limits.frozen_motion:
                    moves = f"the state moves by {100 * moved:.0f} % of its range"
                    text = f"camera {camera}: one image for {count} steps, {moves}"
                    yield Finding("frozen", text, i, start - 1, count)


def _blank(frames: Frames, limits: Thresholds) -> Iterator[Finding]:
    for i, camera, seen in ((i, *item) for i, cameras in enumerate(frames) for item in cameras.items()):
        empty = seen.deviation < limits.contrast  # a white page with a drawing is not overexposed
        dark, bright = empty & (seen.mean < limits.dark), empty & (seen.mean > limits.bright)
        flat = (seen.deviation < limits.flat) & ~dark & ~bright
        for what, where in (("black", dark), ("overexposed", bright), ("a single colour", flat)):
            for start, end in _runs(where):
                yield Finding("blank", f"camera {camera}: {what}", i, start, end - start)


def _saturated(action: Table, ends: np.ndarray, limits: Thresholds) -> Iterator[Finding]:
    for part in (part for part in action.parts if part.limits is not None):
        low, high = part.limits  # type: ignore[misc]
        room = 1e-6 * (high - low)  # for limits rounded to float32
        values = action.values[:, part.at]
        at_limit = ((values <= low + room) | (values >= high - room)) & (high > low)
        for column, name in enumerate(action.names[part.at]):
            for i, own in enumerate(episodes_of(at_limit[:, column], ends)):
                for start, end in _runs(own):
                    if (count := end - start) >= limits.saturated_steps:
                        yield Finding("saturated", f"{name}: at its limit for {count} steps", i, start, count)


def _grippers(action: Table, ends: np.ndarray, limits: Thresholds) -> Iterator[Finding]:
    """Yield gripper numbers that do not move in an episode but do in most others."""
    lengths = np.diff(ends, prepend=0).tolist()
    for column, part in _gripper_columns(action):
        values = action.values[:, column]
        each, low, high = episodes_of(values, ends), float(values.min()), float(values.max())
        still = [i for i, x in enumerate(each) if np.ptp(x) < limits.gripper * (high - low)]
        if high == low or 2 * len(still) >= len(each):
            continue
        for i in still:
            motion = "never opens" if each[i][0] > (low + high) / 2 else "never closes"
            text = motion if part.kind == "binary" else "does not move"
            yield Finding("gripper", f"{action.names[column]} {text}", i, 0, lengths[i])


def _gripper_columns(action: Table) -> list[tuple[int, Columns]]:
    columns = []
    for part in action.parts:
        for i in range(part.at.start, part.at.stop):
            name = f"{part.name} {action.names[i]}".lower()
            if part.kind == "binary" or any(word in name for word in GRIPPERS):
                columns.append((i, part))
    return columns


def _clock(key: str, times: np.ndarray, ends: np.ndarray, rate: float, tolerance: float) -> Iterator[Finding]:
    for i, own in enumerate(episodes_of(times.astype(np.float64), ends)):
        gaps = np.diff(own) * rate  # in control steps
        for t in np.flatnonzero(np.abs(gaps - 1) > tolerance).tolist():
            lost = round(gaps[t]) - 1
            fault = "runs backwards" if gaps[t] <= 0 else f"{lost} dropped" if lost > 0 else "irregular"
            yield Finding("clock", f"{key}: {fault}, {gaps[t] / rate:.3g} s after the last step", i, t + 1)


def _names(table: Table, which: np.ndarray) -> str:
    """Return the names of the first few columns in a mask."""
    names = [name for name, is_in in zip(table.names, which, strict=True) if is_in]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
