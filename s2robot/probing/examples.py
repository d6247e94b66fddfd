"""Which pictures only the larger model gets right, and which only S2: Section 4.1 and Figure 7 of the S2 paper.

    found = examples(outcome, settings)          # of `s2robot.probing.scaling.scaling`
    write_examples(found, outcome.pictures, out)  # examples.html and examples.json

Of held-out pictures, those on which the larger model at one scale gains most over the smaller one, in the probability of
the true class, and S2 from the smaller one gains nothing; beside each two easy ones of its class, on which the models that
are compared are both sure. And the reverse. Probabilities are means over the seeds that held the picture out.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2robot.common.files import write_json
from s2robot.common.provenance import command
from s2robot.probing.pictures import Pictures
from s2robot.probing.scaling_settings import Arm, Outcome, Result, ScalingSettings
from s2robot.reporting.page import write_page

_EASY = 2  # easy pictures beside each
_PIXELS = 192


def probabilities(results: Sequence[Result], count: int) -> np.ndarray:
    """Of the true class, mean over seeds; NaN for pictures that no seed held out.  # (count,)"""
    total, times = np.zeros(count), np.zeros(count)
    for result in results:
        np.add.at(total, result.rows, result.tallies[:, 2])
        np.add.at(times, result.rows, 1)
    return np.where(times > 0, total / np.maximum(times, 1), np.nan)


def gains(base: np.ndarray, gainer: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    """Pictures on which `gainer` gains most over `base` and `other` nothing, most first.  # (at most count,)"""
    gain = np.where((other <= base) & (gainer > base), gainer - base, -np.inf)
    best = np.argsort(-gain, kind="stable")[:count]
    return best[np.isfinite(gain[best])]


def easy(picture: int, labels: np.ndarray, sure: np.ndarray, taken: set[int]) -> list[int]:
    """The surest pictures of its class, itself and those taken left out."""
    known = np.where((labels == labels[picture]) & np.isfinite(sure), sure, -np.inf)
    known[[picture, *taken]] = -np.inf
    best = np.argsort(-known, kind="stable")[:_EASY]
    return [int(i) for i in best if np.isfinite(known[i])]


def examples(outcome: Outcome, settings: ScalingSettings) -> list[dict[str, Any]]:
    """For each family and resize: pictures that the larger model alone, and that S2 alone, gets right."""
    found = []
    kind = next(iter(settings.heads.classify), None)
    pictures = outcome.pictures
    single, most = min(settings.scales, key=len), max(settings.scales, key=len)
    for family in settings.families:
        for resize in settings.resize if len(family) > 1 and len(most) > 1 else ():
            small, large = family[0], family[1]
            arms = [
                Arm(model, tuple(scales), resize, "classify", kind or "")
                for model, scales in ((small, single), (large, single), (small, most))
            ]
            if any(arm not in outcome.results for arm in arms):
                continue
            base, larger, s2 = (probabilities(outcome.results[arm], len(pictures)) for arm in arms)
            sides = []
            for gainer, other in ((larger, s2), (s2, larger)):
                chosen = gains(base, gainer, other, settings.examples)
                known = np.isfinite(base)
                count = int(((gainer > base) & (other <= base))[known].sum())
                sure = np.fmin(base, gainer)
                rows = []
                taken: set[int] = set()
                for i in chosen:
                    beside = easy(int(i), pictures.labels, sure, taken)
                    taken.update(beside)
                    rows.append([_facts(int(j), pictures, (base, larger, s2)) for j in (i, *beside)])
                sides.append({"pictures": count, "of": int(known.sum()), "rows": rows})
            names = [arm.label for arm in arms]
            found.append({"arms": names, "resize": resize, "larger": sides[0], "s2": sides[1]})
    return found


def _facts(i: int, pictures: Pictures, found: Sequence[np.ndarray]) -> dict[str, Any]:
    return {
        "number": i,
        "file": str(pictures.path(i).relative_to(pictures.root)),
        "class": pictures.classes[pictures.labels[i]],
        "probabilities": [round(float(p[i]), 4) for p in found],
    }


def write_examples(found: list[dict[str, Any]], pictures: Pictures, out: Path) -> Path | None:
    """examples.json and examples.html in `out`; the page's path, None where there is nothing to show."""
    write_json(out / "examples.json", found)
    if not found:
        return None
    for pair in found:
        for side in ("larger", "s2"):
            for row in pair[side]["rows"]:
                for shown in row:
                    shown["picture"] = _inline(pictures, shown["number"])
    return write_page(
        out / "examples.html",
        "examples.html.j2",
        title="What only the larger model gets right, and what only S²",
        pairs=found,
        command=command(),
    )


def _inline(pictures: Pictures, i: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pictures.frame(i, _PIXELS)).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
