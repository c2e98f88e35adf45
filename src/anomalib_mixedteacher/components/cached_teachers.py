"""The teachers of a training run, each image of which they see once."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms import v2

from anomalib_mixedteacher.cache_folder import cache_folder
from anomalib_mixedteacher.components.distillation_model import DistillationModel
from anomalib_mixedteacher.components.feature_cache import FeatureCache, cache_key
from anomalib_mixedteacher.components.weights import fingerprint
from anomalib_mixedteacher.errors import CacheError

logger = logging.getLogger(__name__)

# Transforms that give an image the same result at each call. Others may draw at random, and switch the cache off.
DETERMINISTIC = (
    *(v2.Compose, v2.Resize, v2.Normalize, v2.CenterCrop, v2.Pad, v2.Grayscale, v2.Identity),
    *(v2.ToDtype, v2.ToImage, v2.ToPureTensor, v2.RGB, v2.GaussianBlur),
)


CHECKSUM = "checksum"  # kept beside the teachers' features
_PROJECTIONS = 8
_TOLERANCE = 0.02  # projections of an unchanged image differ by float16's rounding, 0.002 at most


class CachedTeachers:
    """Teachers whose features are kept from the first time that they see an image.

    The first answer is rounded to float16 like every later one, so that it makes no difference to the training which
    epoch of a run, or which run, an image was first seen in.

    Files and transforms name an image, but a callback or a collate function may change it all the same. So some random
    projections of what the teachers saw are kept as well; where an image no longer agrees with them, the cache is given
    up.

    Args:
        model: Networks with loaded teachers.
        cache: Where the features are kept.
        digests: SHA-256 of each image file's content, by path.
    """

    def __init__(self, model: DistillationModel, cache: FeatureCache, digests: Mapping[str, str]) -> None:
        self._model = model
        self._cache: FeatureCache | None = cache
        self._digests = digests

    def features(self, images: torch.Tensor, paths: Sequence[str] | None) -> dict[str, list[torch.Tensor]]:
        """Give the teachers' features of a batch.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.
            paths: Their files, if they come from files.

        Returns:
            Feature maps by teacher name.
        """
        if self._cache is None or not paths or not self._digests.keys() >= set(paths):
            return self._model.teacher_features(images)
        digests = [self._digests[path] for path in paths]
        seen = _project(images)
        kept = self._cache.get(digests)
        if kept is None:
            computed = self._model.teacher_features(images)
            try:
                self._cache.put(digests, {**computed, CHECKSUM: [seen[:, :, None, None]]})
            except CacheError as error:
                return self._without_cache(images, str(error))
            kept = self._cache.get(digests)
            assert kept is not None  # just put there
        known = kept.pop(CHECKSUM)[0].flatten(1)
        if not torch.allclose(seen.cpu(), known, rtol=_TOLERANCE, atol=_TOLERANCE):
            return self._without_cache(images, "an image is not what it was, although its file and transforms are.")
        return {name: [part.to(images.device, non_blocking=True) for part in maps] for name, maps in kept.items()}

    def _without_cache(self, images: torch.Tensor, reason: str) -> dict[str, list[torch.Tensor]]:
        logger.warning("Training without the cache of teachers' features: %s", reason)
        self.close()
        return self._model.teacher_features(images)

    def close(self) -> None:
        """Release the memory or the file; from then on features are computed."""
        if self._cache is not None:
            self._cache.close()
        self._cache = None


def cached_teachers(
    model: DistillationModel, digests: Mapping[str, str], transforms: Sequence[Any], budget: int, **settings: Any
) -> CachedTeachers | None:
    """Set up the cache of a training run.

    Args:
        model: Networks with loaded teachers.
        digests: SHA-256 of each image file's content, by path.
        transforms: What images go through on their way to the model, in this order; ``None`` where there is nothing.
        budget: Memory for features in MiB; where it does not suffice, they are kept in a file in the package's cache
            folder.
        settings: What else the features depend on, as plain values.

    Returns:
        The teachers; ``None`` if a transform may draw at random, or if there are no image files.
    """
    varying = [name for transform in transforms for name in _varying(transform)]
    if varying:
        logger.info("Teachers see every image in every epoch: %s may change images at random.", ", ".join(varying))
        return None
    if not digests:
        return None
    teachers = {
        name: [teacher.backbone, list(teacher.extractor.out_indices), teacher.pool, fingerprint(teacher.state_dict())]
        for name, teacher in model.teachers.items()
    }
    key = cache_key(teachers=teachers, transforms=[repr(transform) for transform in transforms], **settings)
    try:
        folder = cache_folder("teacher_features")
    except RuntimeError:  # there is no home directory: memory only
        folder = None
    cache = FeatureCache(key, len(set(digests.values())), budget * 2**20, folder)
    return CachedTeachers(model, cache, digests)


def digest_files(paths: Sequence[str]) -> dict[str, str]:
    """Compute the SHA-256 of files' contents, by path."""
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}


def _project(images: torch.Tensor) -> torch.Tensor:
    """Project each image onto some fixed random directions; values of the size of its pixels, ``(B, 8)``."""
    with torch.autocast(images.device.type, enabled=False):
        values = images.detach().float().flatten(1)
        return values @ _directions(values.shape[1], values.device)


@lru_cache(maxsize=2)
def _directions(size: int, device: torch.device) -> torch.Tensor:
    directions = torch.randn(size, _PROJECTIONS, generator=torch.Generator().manual_seed(0))
    return (directions / size**0.5).to(device)


def _varying(transform: Any) -> list[str]:
    """Name the parts of a transform that are not known to be deterministic."""
    if transform is None:
        return []
    if type(transform) is v2.Compose:
        return [name for part in transform.transforms for name in _varying(part)]
    # a Gaussian blur of several widths draws one
    fixed = not isinstance(transform, v2.GaussianBlur) or len(set(transform.sigma)) == 1
    return [] if type(transform) in DETERMINISTIC and fixed else [type(transform).__name__]
