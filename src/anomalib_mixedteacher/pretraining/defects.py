"""Defects pasted into batches of images, with the share of each pixel that they cover."""

import torch

from anomalib_mixedteacher.pretraining.draw import Draw
from anomalib_mixedteacher.pretraining.textures import smooth_noise

_SEGMENTS = 5
_LEAST_CONTRAST = 0.06


def draw_defects(
    images: torch.Tensor, fillings: tuple[torch.Tensor, ...], draw: Draw, share: float = 0.6
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste a defect or two into a share of the images.

    Shapes: spots, thin curves, ragged patches, pieces of the border. Fillings: darker, brighter, blurred, or another
    texture.

    Args:
        images: Colours ``(B, 3, H, W)``.
        fillings: Other images of the same shape to take a patch's inside from.
        draw: Source of randomness.
        share: Share of the images that get a defect.

    Returns:
        The images, and each pixel's share of a defect, ``(B, H, W)`` in ``[0, 1]``.
    """
    n, _, size, _ = images.shape
    total = torch.zeros(n, size, size, device=draw.device)
    present = draw.chance(n, share)
    for second in (False, True):
        shapes = torch.stack([_spot(n, size, draw), _curve(n, size, draw), _patch(n, size, draw), _chip(n, size, draw)])
        kind = draw.integers(n, 0, len(shapes))
        weight = shapes.gather(0, kind[None].expand(1, n, size, size))[0]
        weight = weight * (present & draw.chance(n, 0.3 if second else 1.0))
        target = _fill(images, fillings, draw)
        images = torch.lerp(images, target, (weight * draw.uniform(n, 0.6, 1))[:, None])
        total = torch.maximum(total, weight)
    return images.clamp(0, 1), total


def _fill(images: torch.Tensor, fillings: tuple[torch.Tensor, ...], draw: Draw) -> torch.Tensor:
    """What a defect shows: the surface darker or brighter, flat, or another texture."""
    n = len(images)
    four = (n, 1, 1, 1)
    deviation, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True)
    contrast = (deviation * draw.uniform(four, 1, 4)).clamp_min(_LEAST_CONTRAST)
    sign = torch.where(draw.chance(four, 0.6), -1.0, 1.0)
    shifted = images + sign * contrast
    flat = mean + sign * contrast + 0.3 * (images - mean)
    scaled = images * torch.where(sign < 0, draw.uniform(four, 0.2, 0.8), draw.uniform(four, 1.3, 2))
    choices = torch.stack([shifted, flat, scaled, *fillings])
    # a changed brightness is by far the most frequent defect of a surface
    odds = torch.tensor([3.0, 3.0, 2.0] + [1.0] * len(fillings), device=draw.device)
    kind = torch.multinomial(odds, n, replacement=True, generator=draw.generator)
    return choices[kind, torch.arange(n, device=draw.device)]


def _grid(size: int, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    ramp = torch.arange(size, dtype=torch.float32, device=draw.device)
    return ramp[None, :, None], ramp[None, None, :]


def _spot(n: int, size: int, draw: Draw) -> torch.Tensor:
    """An ellipse with a ragged rim, 1 to a seventh of the side in radius."""
    y, x = _grid(size, draw)
    radius = draw.log_uniform(n, 1.0, size / 7)
    flat, angle = draw.uniform(n, 0.4, 1), draw.uniform(n, 0, torch.pi)
    dy, dx = y - draw.uniform(n, 0, size), x - draw.uniform(n, 0, size)
    along = dx * angle.cos() + dy * angle.sin()
    across = (dy * angle.cos() - dx * angle.sin()) / flat
    ragged = draw.uniform(n, 0, 0.3) * smooth_noise(n, size, draw, radius)
    return torch.sigmoid(((1 + ragged) * radius - torch.hypot(along, across)) * draw.log_uniform(n, 0.8, 4))


def _curve(n: int, size: int, draw: Draw) -> torch.Tensor:
    """A thin wandering line: cracks, scratches, hairs."""
    y, x = _grid(size, draw)
    length = size * draw.uniform((n, 1), 0.05, 0.25)
    turns = draw.uniform((n, 1), 0, 0.8) * draw.normal(n, _SEGMENTS)
    heading = draw.uniform((n, 1), 0, 2 * torch.pi) + turns.cumsum(dim=1)
    start = draw.uniform((n, 2, 1), 0, size)
    steps = torch.stack([heading.sin(), heading.cos()], dim=1) * length[:, None]
    points = torch.cat([start, start + steps.cumsum(dim=2)], dim=2)
    distance = torch.full((n, size, size), torch.inf, device=draw.device)
    for index in range(_SEGMENTS):
        ay, ax = points[:, 0, index, None, None], points[:, 1, index, None, None]
        by, bx = points[:, 0, index + 1, None, None] - ay, points[:, 1, index + 1, None, None] - ax
        share = (((y - ay) * by + (x - ax) * bx) / (by.square() + bx.square()).clamp_min(1e-6)).clamp(0, 1)
        distance = torch.minimum(distance, torch.hypot(y - ay - share * by, x - ax - share * bx))
    wobble = draw.uniform(n, 0, 0.8) * smooth_noise(n, size, draw, draw.log_uniform(n, 2, 8))
    return torch.sigmoid((draw.log_uniform(n, 0.6, 2.5) + wobble - distance) * draw.log_uniform(n, 1.5, 4))


def _patch(n: int, size: int, draw: Draw) -> torch.Tensor:
    """A ragged patch of up to a third of the image."""
    y, x = _grid(size, draw)
    noise = smooth_noise(n, size, draw, draw.log_uniform(n, size / 12, size / 4))
    dy, dx = y - draw.uniform(n, 0, size), x - draw.uniform(n, 0, size)
    window = 1 - torch.hypot(dy, dx) / draw.log_uniform(n, size / 8, size / 2.5)
    return torch.sigmoid((window * 2 + noise * draw.uniform(n, 0.2, 0.8)) * draw.log_uniform(n, 2, 12))


def _chip(n: int, size: int, draw: Draw) -> torch.Tensor:
    """A piece at the border of the image: a broken edge or corner."""
    y, x = _grid(size, draw)
    angle = draw.uniform(n, 0, 2 * torch.pi)
    middle = (size - 1) / 2
    plane = (x - middle) * angle.cos() + (y - middle) * angle.sin()
    bent = plane + draw.uniform(n, 0, 3) * smooth_noise(n, size, draw, draw.log_uniform(n, 4, size / 2))
    reach = middle * (angle.cos().abs() + angle.sin().abs())
    return torch.sigmoid((bent - reach + draw.log_uniform(n, 2, size / 4)) * draw.log_uniform(n, 0.8, 4))
