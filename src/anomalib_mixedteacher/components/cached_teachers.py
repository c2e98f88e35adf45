"""The teachers of a training run, each image of which they see once."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from anomalib_mixedteacher.cache_folder import cache_folder
from anomalib_mixedteacher.components.deterministic import varying
from anomalib_mixedteacher.components.distillation_model import DistillationModel
from anomalib_mixedteacher.components.feature_cache import FeatureCache, cache_key
from anomalib_mixedteacher.components.speedups import is_asynchronous
from anomalib_mixedteacher.components.weights import fingerprint
from anomalib_mixedteacher.errors import CacheError

logger = logging.getLogger(__name__)

CHECKSUM = "checksum"  # kept beside the teachers' features
_PROJECTIONS = 8
_TOLERANCE = 0.02  # projections of an unchanged image differ by float16's rounding, 0.002 at most
_BATCHES_UNCHECKED = 16  # on an accelerator, where a look at a result waits for everything queued before it


class CachedTeachers:
    """Teachers whose features are kept from the first time that they see an image.

    The first answer is rounded to float16 like every later one, so that it makes no difference to the training which
    epoch of a run, or which run, an image was first seen in.

    Files and transforms name an image, but a callback or a collate function may change it all the same. So some random
    projections of what the teachers saw are kept as well; where an image no longer agrees with them, the cache is given
    up: at once on the CPU, within 16 batches on an accelerator.

    Args:
        model: Networks with loaded teachers.
        cache: Where the features are kept.
        digests: SHA-256 of each image file's content, by path.
    """

    def __init__(self, model: DistillationModel, cache: FeatureCache, digests: Mapping[str, str]) -> None:
        self._model = model
        self._cache: FeatureCache | None = cache
        self._digests = digests
        self._disagreement: torch.Tensor | None = None
        self._unchecked = 0

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
        kept = self._cache.get(digests, images.device)
        if kept is None:
            try:
                self._cache.put(digests, {**self._compute(images), CHECKSUM: [seen[:, :, None, None]]})
            except CacheError as error:
                self._give_up(str(error))
                return self._model.teacher_features(images)
            kept = self._cache.get(digests, images.device)
            assert kept is not None  # just put there
        known = kept.pop(CHECKSUM)[0].flatten(1)
        disagreement = torch.isclose(seen, known, rtol=_TOLERANCE, atol=_TOLERANCE).logical_not().any()
        self._disagreement = disagreement if self._disagreement is None else self._disagreement | disagreement
        self._unchecked += 1
        if self._unchecked >= (_BATCHES_UNCHECKED if is_asynchronous(images.device) else 1):
            self.check()
        return self._model.teacher_features(images) if self._cache is None else kept

    def check(self) -> None:
        """Give the cache up if an image that came since the last check is not what it was."""
        disagreement, self._disagreement, self._unchecked = self._disagreement, None, 0
        if disagreement is not None and bool(disagreement):
            self._give_up("an image is not what it was, although its file and transforms are.")

    def _compute(self, images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """Compute features, on the CPU of one image at a time.

        There the last bits depend on how many are computed at once, and after an interruption an image may be seen for
        the first time in another batch.
        """
        parts = images.split(1) if images.device.type == "cpu" else (images,)
        computed = [self._model.teacher_features(part) for part in parts]
        return {
            name: [torch.cat(level) for level in zip(*(maps[name] for maps in computed), strict=True)]
            for name in computed[0]
        }

    def _give_up(self, reason: str) -> None:
        logger.warning("Training without the cache of teachers' features: %s", reason)
        self.close()

    def close(self) -> None:
        """Release the memory or the file; from then on features are computed."""
        if self._cache is not None:
            self._cache.close()
        self._cache = None


def cached_teachers(
    model: DistillationModel, digests: Mapping[str, str], transforms: Sequence[Any], budget: float, **settings: Any
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
    reasons = [name for transform in transforms for name in varying(transform)]
    if reasons:
        logger.info("Teachers see every image in every epoch: %s may change images at random.", ", ".join(reasons))
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
    except CacheError as error:
        logger.warning("Teachers' features are kept in memory, or not at all: %s", error)
        folder = None
    cache = FeatureCache(key, len(set(digests.values())), int(budget * 2**20), folder)
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
