"""What the teachers are asked to tell from their feature maps.

An objective has one linear head for each layer in use, so that every layer is asked on its own: anomaly maps compare
early layers, which an objective at the network's end leaves to chance. Heads are linear, so what they find lies in the
features themselves and not behind further layers that are thrown away.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.pretraining.draw import Draw
from anomalib_mixedteacher.pretraining.scenes import Scenes

_PURE = 0.9  # least share of a cell that its texture covers
_DEFECT_AREA = 16.0  # pixels of a defect that make a cell defective, whatever the cell's size
_CLEAN_AREA = 3.0  # pixels of a defect that a clean cell may have
_RATIO_SCALE = 0.1  # logarithm of a ratio of brightnesses up to which the residual is about linear
_DARK = 0.05  # added to brightness, so that noise in the dark is no change


def coverage(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Average values ``(B, H, W)`` over the cells of a feature map: ``(B, *size)``."""
    return F.adaptive_avg_pool2d(values[:, None], (size[0], size[1]))[:, 0]


class Objective(nn.Module):
    """A loss on the feature maps of one backbone."""

    def forward(self, features: Sequence[torch.Tensor], scenes: Scenes, draw: Draw) -> torch.Tensor:
        """Compute the loss.

        Args:
            features: Feature maps, one a layer, each of shape ``(B, C_i, H_i, W_i)``.
            scenes: The images that they come from.
            draw: Source of randomness.

        Returns:
            Scalar, the mean over layers.
        """
        raise NotImplementedError


class TextureIdentity(Objective):
    """Which of all textures is this? From the mean of each layer over the region of one texture.

    Args:
        channels: Channels of each layer.
        textures: Number of textures of the run.
    """

    def __init__(self, channels: Sequence[int], textures: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(c, textures) for c in channels)

    def forward(self, features: Sequence[torch.Tensor], scenes: Scenes, draw: Draw) -> torch.Tensor:
        """See :class:`Objective`."""
        del draw
        identity = scenes.identity.flatten(1).mode(dim=1).values
        inside = (scenes.identity == identity[:, None, None]).float()
        losses = []
        for head, feature in zip(self.heads, features, strict=True):
            weight = coverage(inside, feature.shape[-2:])[:, None]
            pooled = (feature * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))
            losses.append(F.cross_entropy(head(pooled), identity))
        return torch.stack(losses).mean()


class LocalContrast(Objective):
    """Positions of one texture lie together, those of others apart, a neighbour within the same image included.

    Supervised contrastive learning (Khosla et al. 2020, eq. 2) of positions instead of images. The positives of a
    position are those of its texture in *other* images, at other places and under another light.

    Args:
        channels: Channels of each layer.
        dimensions: Dimensions of the linear projection; ``None`` compares the features themselves, as anomaly maps do.
        temperature: Divides the cosine similarities.
        positions: Most positions of a batch and layer that take part.
        defects: Positions on a defect take part as negatives of all others, the texture around them included.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dimensions: int | None = 64,
        temperature: float = 0.1,
        positions: int = 1024,
        defects: bool = True,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Identity() if dimensions is None else nn.Conv2d(c, dimensions, kernel_size=1) for c in channels
        )
        self.temperature = temperature
        self.positions = positions
        self.defects = defects

    def forward(self, features: Sequence[torch.Tensor], scenes: Scenes, draw: Draw) -> torch.Tensor:
        """See :class:`Objective`."""
        losses = []
        for head, feature in zip(self.heads, features, strict=True):
            batch, _, height, width = feature.shape
            embedded = F.normalize(head(feature), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
            label, usable = self.labels(scenes, (height, width))
            chosen = usable.flatten().nonzero()[:, 0]
            chosen = chosen[draw.permutation(len(chosen))[: self.positions]]
            image = torch.arange(batch, device=feature.device).repeat_interleave(height * width)[chosen]
            losses.append(self._contrast(embedded[chosen], label.flatten()[chosen], image))
        return torch.stack(losses).mean()

    def labels(self, scenes: Scenes, size: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Label the cells of a map.

        Args:
            scenes: Images.
            size: Height and width of the map.

        Returns:
            Label of each cell, ``(B, *size)``: its texture, or a negative number of its own where there is a defect;
            and whether the cell takes part, which one with two textures or a trace of a defect does not.
        """
        identity = _majority(scenes.identity, size)
        cell = scenes.defect[0].numel() / (size[0] * size[1])
        area = cell * coverage(scenes.defect, size)
        pure = _purity(scenes.identity, identity) > _PURE
        if not self.defects:
            return identity, pure & (area < _CLEAN_AREA)
        alone = -1 - torch.arange(identity.numel(), device=identity.device).reshape(identity.shape)
        defective = area > _DEFECT_AREA
        return torch.where(defective, alone, identity), defective | (pure & (area < _CLEAN_AREA))

    def _contrast(self, embedded: torch.Tensor, label: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        same_label, same_image = label[:, None] == label[None], image[:, None] == image[None]
        positive = same_label & ~same_image
        # same texture in the same image: as easy as copying the light, so neither a positive nor a negative
        similarity = (embedded @ embedded.T / self.temperature).masked_fill(same_label & same_image, -torch.inf)
        # a finite stand-in, since an infinity times a false is no number
        log_share = (similarity - similarity.logsumexp(dim=1, keepdim=True)).masked_fill(~positive, 0)
        count = positive.sum(dim=1)
        anchors = count > 0
        return -(log_share.sum(dim=1)[anchors] / count[anchors]).mean() if anchors.any() else embedded.sum() * 0


class DefectShare(Objective):
    """Is there a defect in this cell of the map? Within whatever texture surrounds it.

    Args:
        channels: Channels of each layer.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(c, 1, kernel_size=1) for c in channels)

    def forward(self, features: Sequence[torch.Tensor], scenes: Scenes, draw: Draw) -> torch.Tensor:
        """See :class:`Objective`."""
        del draw
        losses = []
        for head, feature in zip(self.heads, features, strict=True):
            cell = scenes.defect[0].numel() / feature[0, 0].numel()
            target = (cell * coverage(scenes.defect, feature.shape[-2:]) / _DEFECT_AREA).clamp_max(1)
            losses.append(F.binary_cross_entropy_with_logits(head(feature)[:, 0].float(), target))
        return torch.stack(losses).mean()


class DefectResidual(Objective):
    """What does a defect change in this cell, piece by piece? Nothing, on any clean surface.

    As restoration methods ask it of a whole network (Zavrtanik et al. 2021, DRAEM), here of a linear head at each
    layer: as many directions of the features as a cell has pieces must stay at rest on every good texture, and answer
    to a defect. The residual is a ratio of brightnesses, so that a dark exposure counts as much as a bright one. The
    loss is the share of its energy that stays unexplained: 1 for a head that gives 0.

    Args:
        channels: Channels of each layer.
        pieces: Pieces along a cell's side.
    """

    def __init__(self, channels: Sequence[int], pieces: int = 4) -> None:
        super().__init__()
        self.pieces = pieces
        self.heads = nn.ModuleList(nn.Conv2d(c, pieces**2, kernel_size=1) for c in channels)

    def forward(self, features: Sequence[torch.Tensor], scenes: Scenes, draw: Draw) -> torch.Tensor:
        """See :class:`Objective`."""
        del draw
        after = scenes.images.mean(dim=1) + _DARK
        ratio = (after / (after - scenes.change.mean(dim=1))).log() / _RATIO_SCALE
        losses = []
        for head, feature in zip(self.heads, features, strict=True):
            height, width = feature.shape[-2:]
            change = coverage(ratio, (self.pieces * height, self.pieces * width))[:, None]
            target = F.pixel_unshuffle(change.sign() * change.abs().log1p(), self.pieces)
            error = (head(feature) - target).square().mean()
            losses.append(error / target.square().mean().clamp_min(1e-3))
        return torch.stack(losses).mean()


OBJECTIVES = ("identity", "contrast", "defect_contrast", "feature_contrast", "defect", "residual")


def build_objective(name: str, channels: Sequence[int], textures: int) -> Objective:
    """Build an objective by name.

    Args:
        name: One of :data:`OBJECTIVES`.
        channels: Channels of each layer in use.
        textures: Number of textures of the run.

    Raises:
        ConfigurationError: If the name is unknown.
    """
    if name == "identity":
        return TextureIdentity(channels, textures)
    if name == "contrast":
        return LocalContrast(channels, defects=False)
    if name == "defect_contrast":
        return LocalContrast(channels)
    if name == "feature_contrast":
        return LocalContrast(channels, dimensions=None, temperature=0.07)
    if name == "defect":
        return DefectShare(channels)
    if name == "residual":
        return DefectResidual(channels)
    msg = f"Unknown objective {name!r}; choose one of {', '.join(OBJECTIVES)}."
    raise ConfigurationError(msg)


def _majority(identity: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Texture in the middle of each cell of a map, ``(B, *size)``."""
    return F.interpolate(identity[:, None].float(), size=(size[0], size[1]), mode="nearest-exact")[:, 0].long()


def _purity(identity: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Share of each cell that its texture covers, ``(B, h, w)``."""
    spread = F.interpolate(cells[:, None].float(), size=identity.shape[-2:], mode="nearest-exact")[:, 0].long()
    return coverage((spread == identity).float(), cells.shape[-2:])
