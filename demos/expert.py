"""What the picker would do next, for every step of an episode: the chunks that a policy imitates.

At a step that nobody pushed, the picker's chunk is what was executed from there, up to the next push; from the push on
it is what it would have done instead, and at the episode's end it goes on. So the picker is asked where a push
happens and at the end, not at every step.
"""

from collections.abc import Mapping

import numpy as np


def expert_chunks(action: np.ndarray, asked: Mapping[int, np.ndarray]) -> np.ndarray:
    """Each step's chunk.  # float32 (T, K, A)

    Args:
        action: executed (T, A).
        asked: step -> what the picker would do from there (K, A): for every step at which it did something else, and
            for T, the end.
    """
    chunks = np.empty((len(action), *asked[len(action)].shape), np.float32)
    following = asked[len(action)]
    for t in reversed(range(len(action))):
        following = asked[t] if t in asked else np.concatenate([action[t, None], following])[: len(following)]
        chunks[t] = following
    return chunks
