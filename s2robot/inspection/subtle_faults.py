"""Rules for subtle faults that do not raise the training loss; each reports the size of the fault.

They cover an offset between state and command, a late video, near-duplicate episodes, values in other units, a value
constant in one episode, and episodes that end in motion. Each rule compares episodes, so none needs the robot.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from s2robot.inspection.tables import Finding, Frames, Table, Thresholds, episodes_of

_UNITS = {57.29578: "degrees for radians", 1000.0: "mm for m", 100.0: "cm for m", 25.4: "inches"}
_LAGS = range(-12, 13)  # lags to try, in steps; positive: the video is late
LATE_STEPS = 4 * max(_LAGS) + 2  # a shorter episode does not show a lag
_ALIKE, _SLOPES = 0.95, (0.8, 1.25)  # minimum correlation, and range of slopes, of a command and its state
_POINTS = 32  # points per episode when two are compared
MAX_EPISODES = 3000  # more are not compared pairwise
MIN_EPISODES = 4  # fewer do not define a usual value
FEW = 10  # fewer do not show that a small difference is unusual
_NEAR = 0.15  # relative tolerance for naming a known factor
_SAME = 2.0  # maximum ratio of the factors of columns that count as equal


def subtle_faults(
    tables: Sequence[Table], ends: np.ndarray, frames: Frames, limits: Thresholds
) -> Iterator[Finding]:
    """Yield the findings of these rules; arguments as in `findings.find`."""
    named = {table.key: table for table in tables}
    state, action = named.get("proprio"), named.get("action")
    for table in (table for table in (state, action) if table is not None):
        yield from _units(table, ends, limits)
    if state is not None:
        yield from _late(state, ends, frames, limits)
        yield from _dead(state, ends)
        yield from _early(state, ends, limits)
    if state is not None and action is not None:
        yield from _offsets(state, action, ends, limits)
        yield from _duplicates(state, action, ends, limits)


def _offsets(state: Table, action: Table, ends: np.ndarray, limits: Thresholds) -> Iterator[Finding]:
    """Yield commands, such as a leader arm's, with a constant offset from the state that follows them."""
    kinds = {c: part.kind for part in action.parts for c in range(part.at.start, part.at.stop)}
    spread = state.spread()
    # relative to an episode's mean, an offset of some episodes hides no follower
    moves = lambda table: np.concatenate([x - x.mean(0) for x in episodes_of(table.values, ends)])  # noqa: E731
    both = (action, state), tuple(table._replace(values=moves(table)) for table in (action, state))
    for column in (c for c in range(len(action.names)) if kinds[c] in ("absolute", "")):
        follower = next((at for a, s in both if (at := _follower(a, column, s)) is not None), None)
        if follower is None:
            continue
        width, found_in = spread[follower], ((action, column), (state, follower))
        if width <= 0.2 * np.median(spread):  # any offset is large for a joint that hardly moves
            continue
        commands, states = (episodes_of(table.values[:, at], ends) for table, at in found_in)
        own = np.array([_at_rest(a, s) for a, s in zip(commands, states, strict=True)])  # (E,)
        usual, least = float(np.quantile(own, 0.5, method="lower")), limits.offset * width
        more = own - usual
        many = max(2 * least, 5 * np.quantile(np.abs(more), 0.5, method="lower"))
        odd = np.flatnonzero(np.abs(more) > many).tolist() if len(own) >= FEW else []
        found = [(usual, None, "")] if abs(usual) > least else []
        for offset, episode, than in [*found, *((float(more[i]), i, ", more than usual") for i in odd)]:
            share = f"{100 * abs(offset) / width:.0f} % of its range{than}"
            text = f"{action.names[column]}: {offset:+.3g} from {state.names[follower]}, {share}"
            yield Finding("offset", text, episode)


def _at_rest(command: np.ndarray, state: np.ndarray) -> float:
    """Return the median distance of a command (T,) from the state (T,) in the slower half of an episode's steps."""
    speed = np.abs(np.gradient(state)) if len(state) > 1 else np.zeros(1)
    return float(np.median((command - state)[speed <= np.quantile(speed, 0.5)]))


def _follower(action: Table, column: int, state: Table) -> int | None:
    """Return the state column that follows a command, by its name, else by correlation and scale."""
    a, name = action.values[:, column].astype(np.float64), action.names[column]
    columns = [state.names.index(name)] if name in state.names else range(len(state.names))
    best, follower = _ALIKE, None
    for j in columns:
        s = state.values[:, j].astype(np.float64)
        if len(s) < 10 or a.std() == 0 or s.std() == 0:
            continue
        correlation = float(np.corrcoef(a, s)[0, 1])
        if correlation > best and _SLOPES[0] < correlation * a.std() / s.std() < _SLOPES[1]:
            best, follower = correlation, j
    return follower


def _speeds(state: Table, ends: np.ndarray) -> list[np.ndarray]:
    """Return the total change per step, relative to the range of each number.  # one (T - 1,) per episode"""
    spread = np.where(state.spread() > 0, state.spread(), np.inf)
    steps = (np.abs(np.diff(own, axis=0)) / spread for own in episodes_of(state.values, ends))
    return [own.sum(1) for own in steps]


def _late(state: Table, ends: np.ndarray, frames: Frames, limits: Thresholds) -> Iterator[Finding]:
    """Yield cameras whose images lead or lag the state, at the lag with the highest correlation."""
    speeds = _speeds(state, ends)
    for camera in dict.fromkeys(camera for cameras in frames for camera in cameras):
        pairs = [
            (s, np.minimum(seen[camera].change[1:], 100.0))
            for s, seen in zip(speeds, frames, strict=False)
            if camera in seen and len(s) + 1 >= LATE_STEPS
        ]
        scores = {lag: _agreement(pairs, lag) for lag in _LAGS} if pairs else {0: 0.0}
        lag = max(scores, key=lambda lag: (scores[lag], -abs(lag)))
        best, unshifted = scores[lag], scores[0]
        least = 0.2 if sum(map(len, speeds)) >= 1000 else 0.3  # many steps show a weak correlation
        if abs(lag) >= limits.late_steps and best > max(least, unshifted + max(0.02, 0.3 * (1 - best))):
            many = f"{abs(lag)}{'+' if abs(lag) == max(_LAGS) else ''}"  # the longest lag may be a longer one
            shift = f"{many} steps {'late' if lag > 0 else 'early'}"
            yield Finding("late", f"camera {camera}: {shift} (correlation {unshifted:.2f} -> {best:.2f})")


def _agreement(pairs: Sequence[tuple[np.ndarray, np.ndarray]], lag: int) -> float:
    """Return the correlation of speed and image change ``lag`` steps later, averaged over episodes."""
    correlations = []
    for speed, change in pairs:
        s, c = (speed[:-lag], change[lag:]) if lag > 0 else (speed[-lag:], change[: len(change) + lag])
        if s.std() > 0 and c.std() > 0:
            correlations.append(float(np.corrcoef(s, c)[0, 1]))
    return float(np.mean(correlations)) if correlations else 0.0


def _duplicates(state: Table, action: Table, ends: np.ndarray, limits: Thresholds) -> Iterator[Finding]:
    """Yield episodes much closer to another one, in state and commands, than neighbours usually are."""
    spread = np.concatenate([state.spread(), action.spread()])
    if not (MIN_EPISODES <= len(ends) <= MAX_EPISODES and (spread > 0).any()):
        return
    values = np.concatenate([state.values, action.values], 1).astype(np.float64)
    values = values[:, spread > 0] / spread[spread > 0]
    sample = lambda rows: rows[np.round(np.linspace(0, len(rows) - 1, _POINTS)).astype(int)]  # noqa: E731
    points = np.array([sample(rows).ravel() for rows in episodes_of(values, ends)])
    squares = (points**2).sum(1)
    distance = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0)
    distance = np.sqrt(distance / points.shape[1])  # root mean square, relative to the range
    np.fill_diagonal(distance, np.inf)
    usual = float(np.median(distance.min(1)))
    first: dict[int, int] = {}  # distinct step -> its first episode
    for i, rows in enumerate(episodes_of(values, ends)):
        steps = {hash(row.tobytes()) for row in rows}
        earlier = Counter(first[step] for step in steps if step in first)
        first |= dict.fromkeys(steps.difference(first), i)
        j = int(distance[i, :i].argmin()) if i else 0
        if i and distance[i, j] < limits.duplicate * usual:
            shares = f"{100 * distance[i, j]:.2g} % of the range apart, usually {100 * usual:.2g} %"
            yield Finding("duplicate", f"nearly episode {j}: {shares}", i)
        elif earlier and (most := earlier.most_common(1)[0])[1] > len(steps) / 2:  # a copy that was cut
            yield Finding("duplicate", f"{most[1]} of {len(steps)} steps are those of episode {most[0]}", i)


def _units(table: Table, ends: np.ndarray, limits: Thresholds) -> Iterator[Finding]:
    """Yield episodes in which a number is many times larger or smaller than in the others."""
    if len(ends) < MIN_EPISODES:
        return
    episodes = episodes_of(np.abs(table.values.astype(np.float64)), ends)
    sizes = np.array([np.quantile(rows, 0.9, axis=0) for rows in episodes])  # (E, C)
    low = np.quantile(sizes, 0.25, axis=0)  # of the right half, where half of the episodes are too large
    usual = np.nanmedian(np.where((sizes <= limits.units * low) | (low == 0), sizes, np.nan), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(usual > 0, sizes / usual, 1.0)
    for part in table.parts:
        for i, ratio in enumerate(ratios[:, part.at]):
            is_odd = (ratio > limits.units) | ((ratio < 1 / limits.units) & (ratio > 0))
            if is_odd.mean() < 0.5:
                continue
            factor = float(np.exp(np.median(np.log(ratio[is_odd]))))
            known = [n for f, n in _UNITS.items() for x in (factor, 1 / factor) if abs(x / f - 1) < _NEAR]
            same = np.ptp(np.log(ratio[is_odd])) < np.log(_SAME) and is_odd.sum() > 1
            if same or known or max(factor, 1 / factor) > limits.units**2:
                size = f"{factor:.3g} times the other episodes" + (f", {known[0]}?" if known else "")
                yield Finding("units", f"{table.key} {part.name}: {size}", i)


def _dead(state: Table, ends: np.ndarray) -> Iterator[Finding]:
    """Yield numbers that are exactly constant in an episode, but move in nearly all others."""
    still = np.array(
        [(own == own[:1]).all(0) & (len(own) > 1) for own in episodes_of(state.values, ends)]
    )  # (E, C)
    for i, column in np.argwhere(still & (still.mean(0) <= 0.1)).tolist():
        yield Finding("dead", f"proprio {state.names[column]}: one value for the whole episode", i)


def _early(state: Table, ends: np.ndarray, limits: Thresholds) -> Iterator[Finding]:
    """Yield episodes that end in motion in a dataset whose episodes usually end at rest."""
    speeds = _speeds(state, ends)
    if len(ends) < MIN_EPISODES or max(map(len, speeds)) <= 3:
        return
    last, mean = np.array([(s[-3:].mean(), s.mean()) if len(s) > 3 else (np.nan,) * 2 for s in speeds]).T
    usual = float(np.nanmedian(last / np.where(mean > 0, mean, np.inf)))
    if usual > limits.early / 4:  # episodes of this dataset do not end at rest
        return
    for i in np.flatnonzero(last > limits.early * mean).tolist():
        text = f"ends at {last[i] / mean[i]:.1f} times its mean speed, the others at {usual:.2f} times"
        yield Finding("ends early", text, i)
