"""Images cut into tiles, in torch; see :mod:`mixedteacher_edge.tiling`, which the runtime shares."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from anomalib.data import InferenceBatch

from mixedteacher_edge.tiling import STRIDE, Mosaic, Place, Tiling, pixels

TILES_AT_ONCE = 16


def take(image: torch.Tensor, places: Sequence[Place], tiling: Tiling) -> torch.Tensor:
    """Cut tiles out of an image.

    Args:
        image: Image of shape ``(3, H, W)``.
        places: Where the tiles lie.
        tiling: How to cut.

    Returns:
        Tiles of shape ``(len(places), 3, size, size)``.
    """
    _, height, width = image.shape
    rows = (image[:, pixels(height, place.top, tiling.size)] for place in places)
    return torch.stack(
        [part[..., pixels(width, place.left, tiling.size)] for part, place in zip(rows, places, strict=True)]
    )


def predict_tiled(
    image: torch.Tensor, tiling: Tiling, predict: Callable[[torch.Tensor, Sequence[Place]], torch.Tensor]
) -> InferenceBatch:
    """Predict an image of any size from the maps of its tiles.

    Args:
        image: Normalised image of shape ``(3, H, W)``.
        tiling: How to cut.
        predict: Gives the maps ``(B, 1, size / 4, size / 4)`` of tiles ``(B, 3, size, size)`` and their places.

    Returns:
        ``anomaly_map`` of shape ``(1, 1, H, W)``, each value of the joined map repeated over 4 x 4 pixels, and its
        maximum, ``pred_score`` of shape ``(1, 1)``, not normalised.
    """
    height, width = image.shape[-2:]
    mosaic, lines = Mosaic(width, tiling), []
    all_places = tiling.places(height, width)
    for start in range(0, len(all_places), TILES_AT_ONCE):
        places = all_places[start : start + TILES_AT_ONCE]
        maps = predict(take(image, places, tiling), places).detach().float().cpu().numpy()
        lines += [mosaic.add(place, tile_map[0]) for place, tile_map in zip(places, maps, strict=True)]
    joined = torch.from_numpy(np.concatenate([*lines, mosaic.rest()])).to(image.device)[None, None]
    repeated = joined.repeat_interleave(STRIDE, -2).repeat_interleave(STRIDE, -1)[..., :height, :width]
    return InferenceBatch(anomaly_map=repeated, pred_score=joined.amax(dim=(-2, -1)))


def stack_predictions(predictions: Sequence[InferenceBatch]) -> InferenceBatch:
    """Put the predictions of images of one size into a batch."""
    scores, maps = zip(*((p.pred_score, p.anomaly_map) for p in predictions), strict=True)
    return InferenceBatch(pred_score=torch.cat(scores), anomaly_map=torch.cat(maps))
