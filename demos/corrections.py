"""Where a dataset of corrections begins, and which positions are left to try; the same in simulation and on an arm."""

from s2robot.demos.store import EpisodeStore


def began_with(demos: EpisodeStore, first: int | None) -> int:
    """How many episodes of the demos stand before the corrections."""
    return len(demos) if first is None else min(first, len(demos))


def left_to_try(store: EpisodeStore, begin: int, positions: range) -> tuple[range, int]:
    """The positions behind the last that was corrected, and how many were; episodes before `begin` are the demos'."""
    known = [seed for seed in store.meta("seed")[begin:].tolist() if seed in positions]
    return positions[positions.index(max(known)) + 1 :] if known else positions, len(known)
