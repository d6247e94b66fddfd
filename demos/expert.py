"""The picker's next actions at every step of an episode: the chunks that a policy imitates.

Up to the next push, the chunk of a step is what was executed. From the push on, and beyond the episode's end, it is what
the picker would have done. So the picker is queried at each push and at the end only.
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
