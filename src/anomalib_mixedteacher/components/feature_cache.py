"""Teacher features kept in memory, so that the teachers see each training image once."""

from collections.abc import Callable, Sequence

import torch

_LARGEST = torch.finfo(torch.float16).max


class FeatureCache:
    """Keeps feature maps by image, rounded to float16, up to a budget; what does not fit is computed each time.

    Args:
        budget: Memory in MiB.
    """

    def __init__(self, budget: int) -> None:
        self._free = budget * 2**20
        self._kept: dict[str, list[torch.Tensor]] = {}

    def features(
        self, images: torch.Tensor, paths: Sequence[str], compute: Callable[[torch.Tensor], list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """Give the features of a batch; only those of images that are not kept are computed.

        Args:
            images: Images of shape ``(B, 3, H, W)``.
            paths: Path of each image, by which it is known again.
            compute: The teachers.

        Returns:
            float32 maps of shape ``(B, C_i, H_i, W_i)``. Each value is rounded to float16 from the first time on.
        """
        rows = [self._kept.get(path) for path in paths]
        new = [position for position, row in enumerate(rows) if row is None]
        if new:
            maps = [map_.clamp(-_LARGEST, _LARGEST).half().cpu() for map_ in compute(images[new])]
            for position, *row in zip(new, *maps, strict=True):
                rows[position] = row
                self._keep(paths[position], row)
        columns = zip(*rows, strict=True)
        # float32 first: autocast on a CPU knows no float16
        return [torch.stack([map_.float() for map_ in maps]).to(images.device) for maps in columns]

    def _keep(self, path: str, row: list[torch.Tensor]) -> None:
        size = sum(map_.nbytes for map_ in row)
        if size <= self._free:
            self._free -= size
            self._kept[path] = [map_.clone() for map_ in row]
