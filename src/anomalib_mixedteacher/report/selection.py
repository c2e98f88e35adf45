"""Which images are worth looking at."""

import random
from collections.abc import Mapping, Sequence

from anomalib_mixedteacher.benchmark.result import GOOD
from anomalib_mixedteacher.benchmark.run_folder import KeptPredictions

MISS, ALARM, RANDOM = "miss", "alarm", "random"
PARTS = {MISS: "Lowest-scored defects", ALARM: "Highest-scored good images", RANDOM: "Random sample"}

_SEED = 0


def select(predictions: Mapping[str, KeptPredictions], number: int) -> dict[str, list[str]]:
    """Choose images of a data set.

    The models take turns, each naming the worst image that no other has named yet, so that every model's failures are
    seen and scores of different models need not be compared.

    Args:
        predictions: Predictions by model.
        number: Images of each part at most.

    Returns:
        Parts (``"miss"``, ``"alarm"``, ``"random"``) by the image's path, in the order of :data:`PARTS`.
    """
    kinds = {path: kind for kept in predictions.values() for path, kind in zip(kept.paths, kept.kinds, strict=True)}
    chosen: dict[str, list[str]] = {}
    for part in (MISS, ALARM):
        orders = [_worst_first(kept, part) for kept in predictions.values()]
        for path in _in_turns(orders, number):
            chosen.setdefault(path, []).append(part)
    paths = sorted(kinds)
    for path in sorted(random.Random(_SEED).sample(paths, min(number, len(paths)))):
        chosen.setdefault(path, []).append(RANDOM)
    return chosen


def _worst_first(kept: KeptPredictions, part: str) -> list[str]:
    of_good, sign = (True, -1) if part == ALARM else (False, 1)
    scored = zip(kept.scores.tolist(), kept.paths, kept.kinds, strict=True)
    return [
        path for _, path in sorted((sign * score, path) for score, path, kind in scored if (kind == GOOD) == of_good)
    ]


def _in_turns(orders: Sequence[Sequence[str]], number: int) -> list[str]:
    chosen: dict[str, None] = {}
    waiting = [iter(order) for order in orders]
    while waiting and len(chosen) < number:
        for order in list(waiting):
            path = next((path for path in order if path not in chosen), None)
            if path is None:
                waiting.remove(order)
            elif len(chosen) < number:
                chosen[path] = None
    return list(chosen)
