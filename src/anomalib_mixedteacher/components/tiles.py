"""Images cut into tiles, in torch; see :mod:`mixedteacher_edge.tiling`, which the runtime shares."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from anomalib.data import InferenceBatch
from numpy.typing import NDArray

from mixedteacher_edge.tiling import STRIDE, Mosaic, Place, Tiling, pixels

TILES_AT_ONCE = 16
_STEPS = 8


class Tiles(NamedTuple):
    """How a model works on the tiles of an image.

    Attributes:
        tiling: How to cut.
        profile: What good images reach across their width, ``(W / 4,)``; see
            :func:`~mixedteacher_edge.tiling.web_profile`.
    """

    tiling: Tiling
    profile: torch.Tensor | None = None


def take(image: torch.Tensor, places: Sequence[Place], tiling: Tiling) -> torch.Tensor:
    """Cut tiles ``(len(places), 3, size, size)`` out of an image ``(3, H, W)``."""
    _, height, width = image.shape
    rows = (image[:, pixels(height, place.top, tiling.size)] for place in places)
    return torch.stack(
        [part[..., pixels(width, place.left, tiling.size)] for part, place in zip(rows, places, strict=True)]
    )


def draw(height: int, width: int, count: int, tiling: Tiling) -> list[Place]:
    """Draw different tiles of an image, in steps of an eighth of their size, so that a cache meets them again.

    The first and the last along a side stand for all that would be centred nearer to the border. Otherwise a border
    would be seen a tenth as often as the middle. There may be fewer than ``count``.
    """
    step = tiling.size // _STEPS
    places = tiling.places(height, width, step)
    tops, lefts = ({places[0].top, places[-1].top}, {places[0].left, places[-1].left})
    at_border = torch.tensor([(place.top in tops) + (place.left in lefts) for place in places])
    weights = torch.tensor(1.0 + _STEPS // 2) ** at_border
    return [places[k] for k in torch.multinomial(weights, min(count, len(places))).tolist()]


def join_tiles(
    image: torch.Tensor, tiles: Tiles, predict: Callable[[torch.Tensor, Sequence[Place]], torch.Tensor]
) -> NDArray[np.float32]:
    """Compute the map ``(H / 4, W / 4)``, sides rounded up, of a normalised image ``(3, H, W)`` from its tiles'.

    ``predict`` gives the maps ``(B, 1, size / 4, size / 4)`` of tiles ``(B, 3, size, size)`` and their places.

    Raises:
        DataError: If the profile is of another width.
    """
    (height, width), (tiling, profile) = image.shape[-2:], tiles
    mosaic = Mosaic(width, tiling, None if profile is None else profile.cpu().numpy())
    lines, all_places = [], tiling.places(height, width)
    for start in range(0, len(all_places), TILES_AT_ONCE):
        places = all_places[start : start + TILES_AT_ONCE]
        maps = predict(take(image, places, tiling), places).detach().float().cpu().numpy()
        lines += [mosaic.add(place, tile_map[0]) for place, tile_map in zip(places, maps, strict=True)]
    return np.concatenate([*lines, mosaic.rest()])


def as_prediction(joined: NDArray[np.float32], image: torch.Tensor) -> InferenceBatch:
    """Make a prediction of the joined map ``(H / 4, W / 4)`` of an image ``(3, H, W)``.

    Returns:
        ``anomaly_map`` of shape ``(1, 1, H, W)``, each value repeated over 4 x 4 pixels, and ``pred_score`` of shape
        ``(1, 1)``, its maximum; not normalised.
    """
    height, width = image.shape[-2:]
    coarse = torch.from_numpy(joined).to(image.device)[None, None]
    repeated = coarse.repeat_interleave(STRIDE, -2).repeat_interleave(STRIDE, -1)[..., :height, :width]
    return InferenceBatch(anomaly_map=repeated, pred_score=coarse.amax(dim=(-2, -1)))


def stack_predictions(predictions: Sequence[InferenceBatch]) -> InferenceBatch:
    """Put the predictions of images of one size into a batch."""
    scores, maps = zip(*((p.pred_score, p.anomaly_map) for p in predictions), strict=True)
    return InferenceBatch(pred_score=torch.cat(scores), anomaly_map=torch.cat(maps))
