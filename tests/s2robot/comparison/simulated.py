"""Made-up comparisons for the tests of their statistics."""

import math

import numpy as np
from scipy import stats
from scipy.special import ndtri

from s2robot.comparison import paired


def simulate(rng, runs, seeds, positions, rates, seed_sd=0.0, shared=0.4, own=0.1):
    """Two arms of bool (runs, seeds, positions): seeds differ by seed_sd, hard positions are hard for all.

    `shared` and `own` are the parts of a normal latent that a position gives to both arms and to one arm.
    """
    hard = math.sqrt(shared) * rng.standard_normal((runs, 1, positions))
    arms = []
    for rate in rates:
        level = np.clip(rate + seed_sd * rng.standard_normal((runs, seeds, 1)), 0.01, 0.99)
        place = math.sqrt(own) * rng.standard_normal((runs, 1, positions))
        noise = math.sqrt(1 - shared - own) * rng.standard_normal((runs, seeds, positions))
        arms.append(ndtri(level) + hard + place + noise > 0)
    return arms


def estimates(a, b, seeds_random=True):
    """Half width at 95 %, centre and p value of many runs at once, as `difference` computes them."""
    a, b = a.astype(float), b.astype(float)
    centre, error, df = paired.estimate(a.mean(-2) - b.mean(-2), [a, b] if seeds_random else [])
    return stats.t.ppf(0.975, df) * error, centre, 2 * stats.t.sf(np.abs(centre) / error, df)
