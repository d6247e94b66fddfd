"""Rules for data that train well and deceive: each gives the size of what it finds.

An offset between state and commanded state, a late video, episodes that are nearly the same, numbers in other units, a
number that is dead in an episode, episodes that end in motion. Each rule compares a dataset with itself, so none needs the robot.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from s2robot.inspection.tables import Finding, Frames, Table, Thresholds, episodes_of

_UNITS = {57.29578: "degrees for radians", 1000.0: "mm for m", 100.0: "cm for m", 25.4: "inches"}
_LAGS = range(-12, 13)  # steps that a video may be early or late
_ALIKE, _SLOPES = 0.95, (0.8, 1.25)  # correlation and slope of a command and the state that follows it
_POINTS = 32  # of an episode, when two are compared
_MOST = 3000  # episodes that are compared with each other
_LEAST = 4  # episodes from which the rest says what is ordinary
_NEAR = 0.15  # a factor within this share of a known one has its name
_SAME = 2.0  # factors of columns within this of each other are one


def deceptions(
    tables: Sequence[Table], ends: np.ndarray, frames: Frames, limits: Thresholds
) -> Iterator[Finding]:
    """Find what these rules find; arguments as of `findings.find`."""
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
    """A command that the state follows, as a leader arm's, has a median distance to it where the state rests."""
    kinds = {c: part.kind for part in action.parts for c in range(part.at.start, part.at.stop)}
    spread = state.spread()
    for column in (c for c in range(len(action.names)) if kinds[c] in ("absolute", "")):
        if (follower := _follower(action, column, state)) is None:
            continue
        away = np.concatenate([
            (a - s)[(speed := np.abs(np.gradient(s))) <= np.quantile(speed, 0.5)]
            for a, s in zip(episodes_of(action.values[:, column], ends), episodes_of(state.values[:, follower], ends), strict=True)
            if len(s) > 2
        ])  # fmt: skip
        offset = float(np.nanmedian(away)) if len(away) else 0.0
        own = spread[follower]  # of a joint that hardly moves every offset is large
        if own > 0.2 * np.median(spread) and abs(offset) > limits.offset * own:
            share = f"{100 * abs(offset) / own:.0f} % of its range"
            text = f"{action.names[column]}: {offset:+.3g} from {state.names[follower]}, {share}"
            yield Finding("offset", text)


def _follower(action: Table, column: int, state: Table) -> int | None:
    """The column of the state that a command leads: the one of its name, else the most alike; of about the same scale."""
    a, name = action.values[:, column].astype(np.float64), action.names[column]
    columns = [state.names.index(name)] if name in state.names else range(len(state.names))
    best, found = _ALIKE, None
    for j in columns:
        s = state.values[:, j].astype(np.float64)
        good = np.isfinite(a) & np.isfinite(s)
        if good.sum() < 10 or a[good].std() == 0 or s[good].std() == 0:
            continue
        alike = float(np.corrcoef(a[good], s[good])[0, 1])
        if alike > best and _SLOPES[0] < alike * a[good].std() / s[good].std() < _SLOPES[1]:
            best, found = alike, j
    return found


def _speeds(state: Table, ends: np.ndarray) -> list[np.ndarray]:
    """How much all numbers together change from step to step, in their ranges.  # (T - 1,) of each episode"""
    spread = np.where(state.spread() > 0, state.spread(), np.inf)
    steps = (np.abs(np.diff(own, axis=0)) / spread for own in episodes_of(state.values, ends))
    return [np.nansum(own, axis=1) for own in steps]


def _late(state: Table, ends: np.ndarray, frames: Frames, limits: Thresholds) -> Iterator[Finding]:
    """A video changes when the state does: the lag at which both agree best, over all episodes."""
    speeds = _speeds(state, ends)
    for camera in dict.fromkeys(camera for cameras in frames for camera in cameras):
        pairs = [
            (s, np.minimum(seen[camera].change[1:], 100.0))
            for s, seen in zip(speeds, frames, strict=False)
            if camera in seen and len(s) > 4 * max(_LAGS)
        ]
        agree = {lag: _agreement(pairs, lag) for lag in _LAGS} if pairs else {0: 0.0}
        lag = max(agree, key=lambda lag: (agree[lag], -abs(lag)))
        most, without = agree[lag], agree[0]
        if abs(lag) >= limits.late_steps and most > max(0.3, without + max(0.02, 0.3 * (1 - most))):
            how = f"{abs(lag)} steps {'late' if lag > 0 else 'early'}"
            yield Finding("late", f"camera {camera}: {how} (correlation {most:.2f}, {without:.2f} without)")


def _agreement(pairs: Sequence[tuple[np.ndarray, np.ndarray]], lag: int) -> float:
    """Mean correlation over the episodes of speed and of the image's change ``lag`` steps later."""
    found = []
    for speed, change in pairs:
        s, c = (speed[:-lag], change[lag:]) if lag > 0 else (speed[-lag:], change[: len(change) + lag])
        if s.std() > 0 and c.std() > 0:
            found.append(float(np.corrcoef(s, c)[0, 1]))
    return float(np.mean(found)) if found else 0.0


def _duplicates(state: Table, action: Table, ends: np.ndarray, limits: Thresholds) -> Iterator[Finding]:
    """Episodes whose state and commands differ by a fraction of what episodes that are neighbours otherwise do."""
    if not _LEAST <= len(ends) <= _MOST:
        return
    values = _finite(np.concatenate([state.values, action.values], 1))
    spread = np.concatenate([state.spread(), action.spread()])
    values = values[:, spread > 0] / spread[spread > 0]
    at = lambda own: np.round(np.linspace(0, len(own) - 1, _POINTS)).astype(int)  # noqa: E731
    points = np.array([own[at(own)].ravel() for own in episodes_of(values, ends)])
    squares = (points**2).sum(1)
    apart = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0)
    apart = np.sqrt(apart / points.shape[1])  # root mean square, of a range
    np.fill_diagonal(apart, np.inf)
    usual = float(np.median(apart.min(1)))
    for i in range(1, len(ends)):
        j = int(apart[i, :i].argmin())
        if apart[i, j] < limits.duplicate * usual:
            shares = f"{100 * apart[i, j]:.2g} % of the range apart, neighbours {100 * usual:.2g} %"
            yield Finding("duplicate", f"nearly episode {j}: {shares}", i)


def _finite(values: np.ndarray) -> np.ndarray:
    """As float64, with zeros for what is no number."""
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _units(table: Table, ends: np.ndarray, limits: Thresholds) -> Iterator[Finding]:
    """Episodes in which a number is many times as large as in the others."""
    if len(ends) < _LEAST:
        return
    each = episodes_of(np.abs(_finite(table.values)), ends)
    sizes = np.array([np.quantile(own, 0.9, axis=0) for own in each])  # (E, C)
    usual = np.median(sizes, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(usual > 0, sizes / usual, 1.0)
    for part in table.parts:
        for i, own in enumerate(times[:, part.at]):
            large = (own > limits.units) | ((own < 1 / limits.units) & (own > 0))
            if large.mean() < 0.5:
                continue
            factor = float(np.exp(np.median(np.log(own[large]))))
            known = [n for f, n in _UNITS.items() for x in (factor, 1 / factor) if abs(x / f - 1) < _NEAR]
            same = np.ptp(np.log(own[large])) < np.log(_SAME) and large.sum() > 1
            if same or known:
                times_as = f"{factor:.3g} times the other episodes" + (f", {known[0]}?" if known else "")
                yield Finding("units", f"{table.key} {part.name}: {times_as}", i)


def _dead(state: Table, ends: np.ndarray) -> Iterator[Finding]:
    """Numbers that stay the same to the last bit in an episode, and move in nearly all others."""
    still = np.array([(own == own[:1]).all(0) for own in episodes_of(state.values, ends)])  # (E, C)
    for column in np.flatnonzero((still.mean(0) <= 0.1) & still.any(0)):
        for i in np.flatnonzero(still[:, column]).tolist():
            yield Finding("dead", f"proprio {state.names[column]}: one value for the whole episode", i)


def _early(state: Table, ends: np.ndarray, limits: Thresholds) -> Iterator[Finding]:
    """Episodes that end at full speed, where the others come to rest."""
    if len(ends) < _LEAST:
        return
    each = _speeds(state, ends)
    pairs = [(s[-3:].mean(), s.mean()) if len(s) > 3 else (np.nan, np.nan) for s in each]
    last, mean = np.array(pairs).T
    usual = float(np.nanmedian(last / np.where(mean > 0, mean, np.inf)))
    if usual > limits.early / 4:  # this dataset does not come to rest
        return
    for i in np.flatnonzero(last > limits.early * mean).tolist():
        text = f"ends at {last[i] / mean[i]:.1f} times its mean speed, the others at {usual:.2f} times"
        yield Finding("ends early", text, i)
