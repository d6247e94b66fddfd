"""The shipped demos in the peers' formats.

    python -m benchmarks.peers.demos <folder>            # lerobot/ and robomimic.hdf5
    python -m benchmarks.peers.demos <folder> lerobot    # one of them

A peer imitates the action of every step. In a fifth of the shipped steps that action is a push off the way, which our
own training never imitates, so here every step's action is what the picker would have done there (`expert`); the pictures
and states are those that were recorded. The rest is `s2robot convert`.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

from s2robot.common.paths import shipped_demos
from s2robot.demos.store import EpisodeStore

# What `s2robot convert` is told: robomimic's image experiments are of 84 px and its actions in -1 to 1. LeRobot takes pictures
# of any size; those of 84 px let it make more steps in the same time.
FORMS = {
    "lerobot": ["out={}/lerobot", "to=lerobot", "image_size=84"],
    "robomimic": ["out={}/robomimic.hdf5", "image_size=84", "action_range=data"],
}


def as_expert(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An episode whose action is, at every step, the first of what the expert would do from there."""
    kept = {k: v for k, v in arrays.items() if k not in ("expert", "perturbed", "imitate")}
    return {**kept, "action": arrays["expert"][:, 0]}  # of (T, K, A)


def relabelled(source: EpisodeStore, path: Path) -> None:
    """A store of the same episodes, each as the expert would have it."""
    with EpisodeStore.create(path, {k: v for k, v in source.attrs.items() if k != "arrays"}) as store:
        for i in range(len(source)):
            store.append(as_expert(source.episode(i)), {key: source.meta(key)[i] for key in source.meta_keys})


def main() -> None:
    folder, *forms = sys.argv[1:]
    path = Path(folder, "labelled.zarr")
    if not path.exists():
        relabelled(EpisodeStore.open(shipped_demos("xarm7_cube")), path)
    for form in forms or FORMS:
        words = [word.format(folder) for word in FORMS[form]]
        run = ["hydra.run.dir=" + str(Path(folder, f"convert_{form}"))]
        subprocess.run([sys.executable, "-m", "s2robot", "convert", f"data={path}", *words, *run], check=True)


if __name__ == "__main__":
    main()
