"""Procedural textures, drawn in batches.

A family turns random parameters, one set an image, into a batch of fields ``(n, size, size)`` with zero mean and unit
deviation. All families but the weave, whose pattern of threads may jump, are periodic at the field's borders. Lengths
are in pixels.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from anomalib_mixedteacher.pretraining.draw import Draw

Family = Callable[[int, int, Draw], torch.Tensor]

_TAU = 2 * math.pi
_GROWTH_STEPS = 10


def standardize(fields: torch.Tensor) -> torch.Tensor:
    """Give each field ``(..., H, W)`` zero mean and unit deviation; constant fields become zero."""
    std, mean = torch.std_mean(fields, dim=(-2, -1), keepdim=True, correction=0)
    return (fields - mean) / std.clamp_min(1e-6)


def _frequencies(size: int, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertical and horizontal frequencies of a half spectrum, in cycles a pixel."""
    vertical = torch.fft.fftfreq(size, device=draw.device)[:, None]
    return vertical, torch.fft.rfftfreq(size, device=draw.device)[None]


def _filter(noise: torch.Tensor, amplitude: torch.Tensor) -> torch.Tensor:
    """Filter ``(n, size, size)`` with an amplitude over the half spectrum, and standardise."""
    size = noise.shape[-1]
    return standardize(torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(size, size)))


def _rotated(size: int, angle: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Frequencies along and across a direction, one an image."""
    vertical, horizontal = _frequencies(size, draw)
    cos, sin = angle.cos(), angle.sin()
    return horizontal * cos + vertical * sin, vertical * cos - horizontal * sin


def smooth_noise(n: int, size: int, draw: Draw, wavelength: torch.Tensor) -> torch.Tensor:
    """Draw noise without structure below a wavelength.

    Args:
        n: Number of fields.
        size: Side of a field in pixels.
        draw: Source of randomness.
        wavelength: Shortest length in pixels, ``(n, 1, 1)``.

    Returns:
        Standardised fields ``(n, size, size)``.
    """
    vertical, horizontal = _frequencies(size, draw)
    square = vertical.square() + horizontal.square()
    return _filter(draw.normal(n, size, size), torch.exp(-square * wavelength.square()))


def _axes(n: int, size: int, draw: Draw, warp: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel coordinates bent by smooth noise of up to ``warp`` pixels."""
    ramp = torch.arange(size, dtype=torch.float32, device=draw.device)
    strength = warp * draw.uniform(n) ** 2
    length = draw.log_uniform(n, size / 12, size / 3)
    rows = ramp[:, None] + strength * smooth_noise(n, size, draw, length)
    columns = ramp[None] + strength * smooth_noise(n, size, draw, length)
    return rows, columns


def _wave_vectors(n: int, size: int, draw: Draw, shortest: float, longest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Random wave vectors that fit a whole number of periods into the field, in radians a pixel."""
    length = draw.log_uniform(n, shortest, longest)
    angle = draw.uniform(n, 0, math.pi)
    upright = draw.integers(n, 0, 4)  # half of man-made surfaces are aligned with the image
    angle = torch.where(upright == 0, torch.zeros_like(angle), angle)
    angle = torch.where(upright == 1, torch.full_like(angle, math.pi / 2), angle)
    vertical = (size / length * angle.sin()).round()
    horizontal = (size / length * angle.cos()).round()
    horizontal = torch.where((vertical == 0) & (horizontal == 0), torch.ones_like(horizontal), horizontal)
    return _TAU * vertical / size, _TAU * horizontal / size


def spectral_noise(n: int, size: int, draw: Draw) -> torch.Tensor:
    """Noise with a power-law spectrum, from clouds to sand; a half of it drawn out along a direction."""
    along, across = _rotated(size, draw.uniform(n, 0, math.pi), draw)
    stretch = torch.where(draw.chance(n, 0.5), draw.log_uniform(n, 1.5, 20), torch.ones(1, device=draw.device))
    radius = (along.square() + (across * stretch).square()).sqrt()
    knee, slope = draw.log_uniform(n, 0.01, 0.2), draw.uniform(n, 0.5, 3)
    return _filter(draw.normal(n, size, size), (1 + radius / knee) ** -slope)


def gabor_noise(n: int, size: int, draw: Draw) -> torch.Tensor:
    """Sparse or dense noise with one to three lobes in its spectrum: brushed, combed and cross-hatched surfaces."""
    amplitude = torch.zeros(n, size, size // 2 + 1, device=draw.device)
    for lobe in range(3):
        along, across = _rotated(size, draw.uniform(n, 0, math.pi), draw)
        center = draw.log_uniform(n, 0.01, 0.3)
        narrow, wide = draw.log_uniform(n, 0.004, 0.05), draw.log_uniform(n, 0.02, 0.3)
        shape = torch.exp(-0.5 * (((along.abs() - center) / wide).square() + (across / narrow).square()))
        amplitude = amplitude + shape * draw.chance(n, 1.0 if lobe == 0 else 0.35)
    density = draw.log_uniform(n, 0.002, 1)
    return _filter(draw.normal(n, size, size) * _sparse(n, size, draw, density), amplitude)


def _sparse(n: int, size: int, draw: Draw, density: torch.Tensor) -> torch.Tensor:
    """Ones at a random share of the pixels."""
    return (draw.uniform((n, size, size)) < density).float()


def cells(n: int, size: int, draw: Draw) -> torch.Tensor:
    """Cellular noise: pebbles, tiles, crystals with a value each, cracks between them."""
    rows, columns = _axes(n, size, draw, 6.0)
    most = 48
    count = draw.log_uniform(n, 6, most).long()
    points = draw.uniform((n, most, 2), 0, size)
    stretch = draw.log_uniform(n, 1 / 3, 3)
    nearest, second, which = nearest_points(rows, columns, points, count, stretch)
    value = draw.normal(n, most).gather(1, which.flatten(1)).reshape(n, size, size)
    cracks = -torch.exp(-(second - nearest) / draw.log_uniform(n, 0.7, 4))
    shapes = torch.stack([standardize(nearest), standardize(second - nearest), cracks * 3, value])
    weights = draw.uniform((4, n, 1, 1)) ** 4
    return standardize((shapes * weights).sum(dim=0))


def nearest_points(
    rows: torch.Tensor, columns: torch.Tensor, points: torch.Tensor, count: torch.Tensor, stretch: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the two nearest points of every pixel in a periodic field (Worley 1996).

    Args:
        rows: Row coordinate of each pixel, ``(n, S, S)``.
        columns: Column coordinate of each pixel, ``(n, S, S)``.
        points: Row and column of ``P`` points a field, ``(n, P, 2)``.
        count: How many of the points a field uses, ``(n, 1, 1)``.
        stretch: Factor of squared vertical distances, and divisor of horizontal ones, ``(n, 1, 1)``.

    Returns:
        Distance to the nearest and to the second nearest point, and the nearest one's number, each ``(n, S, S)``.
    """
    size = rows.shape[-1]
    nearest = torch.full_like(rows, torch.inf)
    second = nearest.clone()
    which = torch.zeros_like(rows, dtype=torch.long)
    for index in range(points.shape[1]):
        dy = (rows - points[:, index, :1, None]).remainder(size)
        dx = (columns - points[:, index, 1:, None]).remainder(size)
        distance = torch.minimum(dy, size - dy).square() * stretch + torch.minimum(dx, size - dx).square() / stretch
        distance = distance.masked_fill(index >= count, torch.inf)
        closer = distance < nearest
        second = torch.where(closer, nearest, torch.minimum(second, distance))
        nearest = torch.where(closer, distance, nearest)
        which = which.masked_fill(closer, index)
    return nearest.sqrt(), second.sqrt(), which


def weave(n: int, size: int, draw: Draw) -> torch.Tensor:
    """Warp and weft threads that pass over and under each other: plain weave, twill, basket, mesh."""
    rows, columns = _axes(n, size, draw, 4.0)
    pitch = size / (size / draw.log_uniform(n, 4, 24)).round()
    ratio = torch.where(draw.chance(n, 0.6), 1.0, 0.5)
    u, v = columns / pitch, rows / (pitch / ratio)
    period, shift = draw.integers(n, 2, 5), draw.integers(n, 1, 3)
    over = ((u.floor() + shift * v.floor()).remainder(period) < (period / 2)).float()
    roundness = draw.log_uniform(n, 0.3, 3)
    profile_u = (math.pi * u).sin().abs() ** roundness
    profile_v = (math.pi * v).sin().abs() ** roundness
    height = over * profile_u * draw.uniform(n, 0.5, 1) + (1 - over) * profile_v
    hairs = standardize(smooth_noise(n, size, draw, draw.log_uniform(n, 0.5, 2)))
    return standardize(standardize(height) + draw.uniform(n, 0, 0.5) * hairs)


def gratings(n: int, size: int, draw: Draw) -> torch.Tensor:
    """One to three crossed periodic profiles, bent and jittered: ribs, grids, dots, moire."""
    rows, columns = _axes(n, size, draw, 5.0)
    total = torch.zeros(n, size, size, device=draw.device)
    for index in range(3):
        vertical, horizontal = _wave_vectors(n, size, draw, 3, size / 3)
        wave = (rows * vertical + columns * horizontal + draw.uniform(n, 0, _TAU)).sin()
        sharp = draw.log_uniform(n, 0.3, 8)
        wave = torch.tanh(sharp * (wave - draw.uniform(n, -0.8, 0.8))) / torch.tanh(sharp)
        total = total + wave * draw.chance(n, 1.0 if index == 0 else 0.45)
    return standardize(total)


def grains(n: int, size: int, draw: Draw) -> torch.Tensor:
    """Spots of one or two sizes scattered over the surface: granules, pores, speckles, terrazzo."""
    vertical, horizontal = _frequencies(size, draw)
    square = (vertical.square() + horizontal.square()) * _TAU**2
    total = torch.zeros(n, size, size, device=draw.device)
    for _ in range(2):
        radius = draw.log_uniform(n, 0.7, 8)
        cover = draw.log_uniform(n, 0.02, 0.6)
        impulses = _sparse(n, size, draw, cover / (math.pi * radius.square())) * draw.normal(n, size, size)
        signed = torch.where(draw.chance(n, 0.5), impulses, impulses.abs())
        spots = _filter(signed, torch.exp(-0.5 * square * radius.square()))
        hard = torch.tanh(draw.log_uniform(n, 0.5, 6) * spots)
        total = total + hard * draw.uniform(n, 0.2, 1)
    return standardize(total)


def rings(n: int, size: int, draw: Draw) -> torch.Tensor:
    """Bent bands with fine grain: wood, agate, brushed rounds."""
    vertical, horizontal = _wave_vectors(n, size, draw, 5, size / 4)
    ramp = torch.arange(size, dtype=torch.float32, device=draw.device)
    bend = smooth_noise(n, size, draw, draw.log_uniform(n, size / 10, size / 2)) * draw.log_uniform(n, 0.3, 8)
    phase = ramp[:, None] * vertical + ramp[None] * horizontal + bend
    band = (
        phase.sin() + draw.uniform(n, 0, 0.6) * (2 * phase + 1).sin()
    ).sign() * phase.sin().abs() ** draw.log_uniform(n, 0.2, 2)
    fibre = gabor_noise(n, size, draw)
    return standardize(band + draw.uniform(n, 0, 0.8) * fibre)


def grown(n: int, size: int, draw: Draw) -> torch.Tensor:
    """Labyrinths and spots, as reaction and diffusion make them.

    One band of wavelengths grows against saturation (the idea of Turing 1952), in alternating steps: filter in the
    spectrum, saturate in space.
    """
    along, across = _rotated(size, draw.uniform(n, 0, math.pi), draw)
    stretch = torch.where(draw.chance(n, 0.4), draw.log_uniform(n, 1, 3), torch.ones(1, device=draw.device))
    radius = (along.square() + (across * stretch).square()).sqrt()
    center = 1 / draw.log_uniform(n, 5, 28)
    band = torch.exp(-0.5 * ((radius - center) / (0.25 * center)).square())
    gain, bias = draw.log_uniform(n, 1, 5), draw.uniform(n, -0.6, 0.6)
    field = draw.normal(n, size, size)
    for _ in range(_GROWTH_STEPS):
        field = torch.tanh(gain * _filter(field, band) + bias)
    return standardize(field)


def filtered(n: int, size: int, draw: Draw) -> torch.Tensor:
    """Noise through a random convolutional network of its own for each image."""
    width, fields = 4, smooth_noise(n, size, draw, draw.log_uniform(n, 1, 12))[:, None]
    for layer in range(3):
        channels, out, dilation = fields.shape[1], 1 if layer == 2 else width, 2**layer
        kernel = draw.normal(n * out, channels, 5, 5)
        padded = F.pad(fields, [2 * dilation] * 4, mode="circular").flatten(0, 1)[None]
        mixed = F.conv2d(padded, kernel, groups=n, dilation=dilation).reshape(n, out, size, size)
        fields = torch.tanh(1.5 * standardize(mixed)).abs()
    return standardize(fields[:, 0])


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (spectral_noise, gabor_noise, cells, weave, gratings, grains, rings, grown, filtered)
}


def draw_fields(n: int, size: int, draw: Draw) -> torch.Tensor:
    """Draw fields of all families in turn, a third of them compositions of two.

    Args:
        n: Number of fields.
        size: Side in pixels.
        draw: Source of randomness.

    Returns:
        Standardised fields ``(n, size, size)``, in random order.
    """
    share = -(-n // len(FAMILIES))
    fields = torch.cat([family(share, size, draw) for family in FAMILIES.values()])
    fields = fields[draw.permutation(len(fields))][:n]
    return torch.where(draw.chance(n, 1 / 3), _compose(fields, fields.roll(1, dims=0), draw), fields)


def _compose(first: torch.Tensor, second: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Combine two fields: a sum, a modulation, one in the gaps of the other, one bent along the other."""
    n, size, _ = first.shape
    share = draw.uniform(n, 0.25, 0.75)
    gaps = torch.sigmoid(draw.log_uniform(n, 2, 20) * (first - draw.uniform(n, -1, 1)))
    ramp = torch.arange(size, device=draw.device)
    shift = (draw.uniform(n, 1, 5) * second).round().long()
    bent = first.gather(2, (ramp[None, None] + shift).remainder(size))
    choices = torch.stack(
        [
            share * first + (1 - share) * second,
            first * (1 + torch.tanh(second)),
            gaps * first + (1 - gaps) * second,
            bent,
        ]
    )
    kind = draw.integers(n, 0, len(choices))
    return standardize(torch.gather(choices, 0, kind[None].expand(1, n, size, size))[0])
