"""Training images: textures side by side, some with a defect, under varying light.

A :class:`Bank` holds coloured textures on large canvases. :func:`draw_scenes` cuts many small images from it, so that
a texture, which is dear, serves many images, which are cheap.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from anomalib_mixedteacher.pretraining.defects import draw_defects
from anomalib_mixedteacher.pretraining.draw import Draw
from anomalib_mixedteacher.pretraining.textures import draw_fields, smooth_noise, standardize

NO_TEXTURE = -1
_CHUNK = 64  # textures drawn at once: bounds the memory of a bank


@dataclass
class Bank:
    """Coloured textures.

    Attributes:
        canvases: Colours ``(N, 3, S, S)`` in ``[0, 1]``.
        first_identity: Number of the first texture among all textures of a run; the others follow.
    """

    canvases: torch.Tensor
    first_identity: int

    @classmethod
    def draw(cls, n: int, size: int, draw: Draw, first_identity: int = 0) -> "Bank":
        """Draw ``n`` textures on canvases of ``size`` pixels a side."""
        chunks = []
        for start in range(0, n, _CHUNK):
            count = min(_CHUNK, n - start)
            chunks.append(colorize(draw_fields(count, size, draw), draw_fields(count, size, draw), draw))
        return cls(torch.cat(chunks), first_identity)


@dataclass
class Scenes:
    """A batch of training images and what is where in them.

    Attributes:
        images: ``(B, 3, H, W)`` in ``[0, 1]``.
        identity: Number of the texture at each pixel, ``(B, H, W)``, within the run.
        defect: Share of a defect at each pixel, ``(B, H, W)`` in ``[0, 1]``.
        change: What the defects change in the images, ``(B, 3, H, W)`` in ``[-1, 1]``; 0 where there are none.
    """

    images: torch.Tensor
    identity: torch.Tensor
    defect: torch.Tensor
    change: torch.Tensor


def colorize(fields: torch.Tensor, others: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Colour fields by random palettes, a half of them nearly grey.

    Args:
        fields: Standardised fields ``(n, S, S)``.
        others: Fields of the same shape that shift the colour where the palette has one.
        draw: Source of randomness.

    Returns:
        Colours ``(n, 3, S, S)`` in ``[0, 1]``.
    """
    n = len(fields)
    four = (n, 3, 1, 1)
    grey, tint = draw.uniform((n, 1, 1, 1), 0.15, 0.85), 0.03 * draw.normal(n, 3).reshape(four)
    contrast = draw.log_uniform((n, 1, 1, 1), 0.03, 0.3)
    value = fields[:, None].clamp(-3, 3)
    plain = grey + tint + contrast * value * (1 + 0.1 * draw.normal(n, 3).reshape(four))
    # three knots: dark, middle and bright colour of the palette
    dark, middle, bright = (draw.uniform(four) for _ in range(3))
    place = (0.5 + value / 5).clamp(0, 1)
    low, high = (1 - 2 * place).clamp_min(0), (2 * place - 1).clamp_min(0)
    palette = low * dark + high * bright + (1 - low - high) * middle
    second = draw.uniform((n, 1, 1, 1), 0, 0.15) * others[:, None] * draw.normal(n, 3).reshape(four)
    strength = draw.uniform((n, 1, 1, 1), 0.2, 1)
    colored = middle + strength * (palette - middle) + second * draw.chance((n, 1, 1, 1), 0.4)
    return torch.where(draw.chance((n, 1, 1, 1), 0.5), plain, colored).clamp(0, 1)


def draw_scenes(bank: Bank, batch: int, size: int, draw: Draw, light: float = 1.0) -> Scenes:
    """Draw training images.

    Each texture in a batch is in several of its images, at other places and under another light, as a contrastive
    objective needs it.

    Args:
        bank: Textures.
        batch: Number of images.
        size: Side of an image in pixels.
        draw: Source of randomness.
        light: Spread of exposure and shading; 0 lights every image alike.

    Returns:
        The images, on the bank's device.
    """
    chosen = draw.permutation(len(bank.canvases))[: max(batch // 2, 1)]
    base = chosen[torch.arange(batch, device=draw.device) % len(chosen)]
    guest = chosen[draw.integers((batch,), 0, len(chosen))]
    patch = chosen[draw.integers((batch,), 0, len(chosen))]
    scene = _crop(bank, base, size, draw)
    guests = _crop(bank, guest, size, draw)
    region = _region(batch, size, draw) * draw.chance(batch, 0.6)
    images = torch.lerp(scene, guests, region[:, None])
    inside = region > 0.5
    fillings = (_crop(bank, patch, size, draw), images.roll((size // 3, size // 2), dims=(-2, -1)))
    clean = images
    images, defect = draw_defects(images, fillings, draw)
    identity = bank.first_identity + torch.where(inside, guest[:, None, None], base[:, None, None])
    clean = _photograph(clean, draw.copy(), light)  # under the very same light and noise
    images = _photograph(images, draw, light)
    return Scenes(images, identity, defect, change=images - clean)


def _crop(bank: Bank, indices: torch.Tensor, size: int, draw: Draw) -> torch.Tensor:
    """Cut one window from each canvas, slightly turned and scaled, some mirrored."""
    n, side = len(indices), bank.canvases.shape[-1]
    # anchored away from the border, so that a turned window stays inside
    ramp = torch.linspace(-1, 1, size, device=draw.device)
    reach = (size - 1) / (side - 1)
    scale = reach * draw.log_uniform((n, 1, 1), 0.8, 1.25).clamp_max(0.95 / reach / 1.25)
    angle = draw.uniform((n, 1, 1), -0.15, 0.15)
    mirror = 1.0 - 2.0 * draw.chance((n, 1, 1), 0.5).float()
    x, y = ramp[None, None, :] * mirror, ramp[None, :, None]
    room = 1 - scale * 1.2
    grid_x = scale * (x * angle.cos() - y * angle.sin()) + room * draw.uniform((n, 1, 1), -1, 1)
    grid_y = scale * (x * angle.sin() + y * angle.cos()) + room * draw.uniform((n, 1, 1), -1, 1)
    grid = torch.stack([grid_x, grid_y], dim=-1)
    return F.grid_sample(bank.canvases[indices], grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def _region(n: int, size: int, draw: Draw) -> torch.Tensor:
    """Weights ``(n, size, size)`` of a second texture: about a half of the image, with a wavy border."""
    ramp = torch.linspace(-1, 1, size, device=draw.device)
    angle = draw.uniform(n, 0, 2 * torch.pi)
    plane = ramp[None, None] * angle.cos() + ramp[None, :, None] * angle.sin()
    wavy = plane + draw.uniform(n, 0, 0.4) * smooth_noise(n, size, draw, draw.log_uniform(n, size / 6, size / 2))
    return torch.sigmoid((wavy - draw.uniform(n, -0.4, 0.4)) * size / 2)


def _photograph(images: torch.Tensor, draw: Draw, light: float) -> torch.Tensor:
    """Uneven light, exposure and noise: what the teachers should not care for."""
    n, _, size, _ = images.shape
    ramp = torch.linspace(-1, 1, size, device=draw.device)
    slope = draw.uniform((3, n, 1, 1), -1, 1)
    field = slope[0] * ramp[None, None] + slope[1] * ramp[None, :, None]
    field = field + slope[2] * standardize(field.square())
    strength = draw.uniform(n, 0, 0.25 * light) * draw.chance(n, 0.7)
    gain = draw.log_uniform(n, 0.7**light, 1.4**light)
    lit = images * (gain * (1 + strength * field).clamp_min(0.2))[:, None] + draw.uniform(
        (n, 1, 1, 1), -0.08 * light, 0.08 * light
    )
    noise = draw.uniform((n, 1, 1, 1), 0, 0.03) * draw.chance((n, 1, 1, 1), 0.7)
    grey = draw.chance((n, 1, 1, 1), 0.5)
    lit = torch.where(grey, lit.mean(dim=1, keepdim=True).expand_as(lit), lit)
    grain = draw.normal(*images.shape)
    grain = torch.where(grey, grain[:, :1].expand_as(grain), grain)
    return (lit + noise * grain).clamp(0, 1)
