"""Defects for procedural textures, each with the exact mask of the pixels it covers.

A defect changes the clean surface of a texture; the photograph is taken afterwards, so sensor noise and lighting cover
the defect too and give it away no more than on a camera. Blending weights below a quarter are cut to zero: nothing
invisible is in a mask, and outside a mask the image equals the good one bit for bit.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomalib_mixedteacher.data.textures import Array, Texture, length_unit, scene, smooth_noise

BoolArray = NDArray[np.bool_]
Defect = Callable[[Texture, np.random.Generator], tuple[Array, BoolArray]]
"""Gives the changed surface ``(H, W, 3)`` and the mask ``(H, W)`` of what changed."""

_LEAST_WEIGHT = 0.25
_LEAST_CHANGE = 0.02


def _blend(surface: Array, target: Array, weight: Array) -> tuple[Array, BoolArray]:
    """Mix the target into the surface where the weight is noticeable; the mask is where it is."""
    mask = weight >= _LEAST_WEIGHT
    share = np.where(mask, weight, 0)[..., None]
    mixed = np.clip((1 - share) * surface + share * target, 0, 1)
    return np.where(mask[..., None], mixed, surface).astype(np.float32), mask


def _center(size: int, rng: np.random.Generator, reach: float) -> tuple[float, float]:
    """Draw a point that is at least ``reach`` pixels from the border, or the middle half if that leaves no room."""
    reach = min(reach, 0.35 * size)
    y, x = rng.uniform(reach, size - reach, 2)
    return float(y), float(x)


def _blob(size: int, rng: np.random.Generator, radius: tuple[float, float], ragged: float) -> tuple[Array, float]:
    """Give the depth in an irregular blob (1 in the middle, 0 at its rim, negative outside) and its radius in pixels.

    The radius is drawn from a range of shares of the :func:`scene`'s side.
    """
    extent = max(rng.uniform(*radius) * scene(size), 2.0)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    cy, cx = _center(size, rng, extent)
    angle, flat = rng.uniform(0, np.pi), rng.uniform(0.65, 1.0)
    along = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) / extent
    across = (-(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)) / (extent * flat)
    turn = np.arctan2(across, along)
    rim = np.ones_like(turn)
    for wave in range(2, 6):
        rim += ragged / wave * rng.standard_normal() * np.cos(wave * turn + rng.uniform(0, 2 * np.pi))
    return 1 - np.hypot(along, across) / np.clip(rim, 0.4, 1.6), extent


def scratch(texture: Texture, rng: np.random.Generator) -> tuple[Array, BoolArray]:
    """Draw a thin curved scratch, brighter or darker than the surface."""
    side = texture.surface.shape[0]
    length = rng.uniform(0.2, 0.6) * scene(side)
    width = rng.uniform(1.6, 3.2) * length_unit(side)
    direction, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.25)
    cy, cx = _center(side, rng, length / 2)
    t = np.linspace(-0.5, 0.5, 4 * side)
    bow = bend * (0.25 - t**2)
    x = cx + length * (t * np.cos(direction) - bow * np.sin(direction))
    y = cy + length * (t * np.sin(direction) + bow * np.cos(direction))
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    off_line = np.ones((side, side), bool)
    off_line[y[inside].astype(int), x[inside].astype(int)] = False
    distance = ndimage.distance_transform_edt(off_line)
    weight = np.clip(width / 2 + 0.5 - distance, 0, 1) * rng.uniform(0.45, 0.8)
    # Towards the farther end of the range of brightness, or the scratch may match the surface.
    level = 0.95 if texture.surface[~off_line].mean() < rng.uniform(0.35, 0.65) else 0.04
    return _blend(texture.surface, np.full_like(texture.surface, level), weight.astype(np.float32))


def stain(texture: Texture, rng: np.random.Generator) -> tuple[Array, BoolArray]:
    """Soak an irregular spot with a tinted liquid that dries darker at its rim; the texture shows through."""
    depth, extent = _blob(texture.surface.shape[0], rng, (0.06, 0.16), ragged=0.35)
    tint = 1 - rng.uniform(0.25, 0.5) * rng.uniform(0.6, 1.0, 3)
    rim = 1 - 0.25 * np.exp(-((np.clip(depth, 0, 1) * extent / 4) ** 2))
    target = texture.surface * tint * rim[..., None]
    return _blend(texture.surface, target, np.clip(depth * extent / 2 + 0.5, 0, 1))


def hole(texture: Texture, rng: np.random.Generator) -> tuple[Array, BoolArray]:
    """Punch a small ragged hole: dark inside, with a raised bright edge."""
    side = texture.surface.shape[0]
    depth, extent = _blob(side, rng, (0.015, 0.05), ragged=0.5)
    edge = np.clip(1 - np.abs(depth * extent) / (1.3 * length_unit(side)), 0, 1)[..., None]
    inside = texture.surface.mean((0, 1)) * (1 - rng.uniform(0.7, 0.92))
    target = edge * np.clip(texture.surface * 1.35 + 0.1, 0, 1) + (1 - edge) * inside
    return _blend(texture.surface, target, np.clip(depth * extent + 1.5 * length_unit(side), 0, 1))


def missing_thread(texture: Texture, rng: np.random.Generator) -> tuple[Array, BoolArray]:
    """Take one thread out over part of its length, so that what lies beneath shows."""
    side = texture.surface.shape[0]
    cy, cx = _center(side, rng, 0.3 * scene(side))
    reach = rng.uniform(0.4, 1.0) * scene(side) / 2
    y, x = np.mgrid[0:side, 0:side]
    number = np.floor(texture.threads)
    band = (number == number[int(cy), int(cx)]) & (np.hypot(y - cy, x - cx) <= reach)
    weight = rng.uniform(0.75, 1.0)
    # Between the wires of a grid, or where the weft was on top, nothing changes: that is no defect.
    change = weight * np.abs(texture.bare - texture.surface).max(-1)
    band &= ndimage.binary_closing(change > _LEAST_CHANGE)
    return _blend(texture.surface, texture.bare, np.float32(weight) * band)


def misaligned_patch(texture: Texture, rng: np.random.Generator) -> tuple[Array, BoolArray]:
    """Replace a square by the same texture from elsewhere, turned by 90 degrees, slightly off in brightness."""
    side = texture.surface.shape[0]
    extent = max(int(rng.uniform(0.14, 0.28) * scene(side)), 4)
    (top, left), (from_top, from_left) = rng.integers(0, side - extent + 1, (2, 2))
    patch = np.rot90(texture.surface[from_top : from_top + extent, from_left : from_left + extent]).copy()
    patch *= 1 + rng.choice([-1, 1]) * rng.uniform(0.05, 0.14)
    # The seam throws a shadow: without it, a turned patch of a texture without direction could not be seen.
    seam = max(round(length_unit(side)), 1)
    shadow = np.full((extent, extent, 1), 0.7, np.float32)
    shadow[seam:-seam, seam:-seam] = 1
    target = texture.surface.copy()
    target[top : top + extent, left : left + extent] = patch * shadow
    weight = np.zeros((side, side), np.float32)
    weight[top : top + extent, left : left + extent] = 1
    return _blend(texture.surface, target, weight)


def contrast_blob(texture: Texture, rng: np.random.Generator) -> tuple[Array, BoolArray]:
    """Wash out or harden the texture in a soft spot, with a slight change of brightness."""
    side = texture.surface.shape[0]
    depth, _ = _blob(side, rng, (0.1, 0.2), ragged=0.2)
    mean = ndimage.gaussian_filter(texture.surface, (texture.pitch, texture.pitch, 0))
    washed = rng.uniform() < 0.5
    gain = rng.uniform(0.15, 0.5) if washed else rng.uniform(1.5, 1.9)
    shift = 1 + (1 if washed else -1) * rng.uniform(0.1, 0.2)
    drift = 1 + 0.02 * smooth_noise(side, rng, side / 16)[..., None]
    target = np.clip((mean + gain * (texture.surface - mean)) * shift * drift, 0, 1)
    return _blend(texture.surface, target, np.clip(depth * 2.5 + _LEAST_WEIGHT, 0, 1) * (depth > 0))


DEFECTS: dict[str, Defect] = {
    "scratch": scratch,
    "stain": stain,
    "hole": hole,
    "missing_thread": missing_thread,
    "misaligned_patch": misaligned_patch,
    "contrast_blob": contrast_blob,
}
"""The defects by name."""
