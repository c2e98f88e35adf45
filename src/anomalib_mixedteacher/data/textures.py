"""Procedural textures of good surfaces.

A family has a fixed *appearance* (colours, pitch, direction) drawn from one generator, so that the images of a category
look like photographs of one product. Position, small irregularities, lighting and sensor noise come from a second
generator, once per image.

A texture is kept in two stages: the clean surface, which defects may change, and the photograph of it. The lighting and
the noise of the photograph are drawn before any defect, so a defect changes exactly the pixels it was put on.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.floating[Any]]
Family = Callable[[int, np.random.Generator, np.random.Generator], "Texture"]
"""Draws a texture of a side in pixels; the first generator draws what all images of the category share, the second what
differs between images."""

_MARGIN = 0.02
_TAU = 2 * np.pi


@dataclass(frozen=True)
class Texture:
    """One clean surface, the layout defects need, and how it is photographed.

    Attributes:
        surface (Array): Colours of the clean surface, ``(H, W, 3)`` in ``[0, 1]``.
        threads (Array): Position across the texture's main direction in threads, ``(H, W)``; its integer part numbers
            the thread (wire, grain line, band) a pixel belongs to.
        bare (Array): What shows where the thread of a pixel is missing, ``(H, W, 3)`` in ``[0, 1]``.
        pitch (float): Width of a thread in pixels.
        light (Array): Factor of the illumination, ``(H, W, 1)``.
        noise (Array): Sensor noise, ``(H, W, 3)``.
    """

    surface: Array
    threads: Array
    bare: Array
    pitch: float
    light: Array
    noise: Array

    def photograph(self, surface: Array | None = None) -> Array:
        """Light a surface ``(H, W, 3)``, by default the good one, and add the sensor noise; float32 in ``[0, 1]``."""
        surface = self.surface if surface is None else surface
        return np.clip(surface * self.light + self.noise, 0, 1).astype(np.float32)


def scene(size: int) -> int:
    """Give the side in pixels of what a picture shows: a larger one than 256 shows more of the surface, not larger."""
    return min(size, 256)


def length_unit(size: int) -> float:
    """Give the scale of structures: 1 from 256 pixels on, and never so small that threads vanish between pixels."""
    return max(scene(size) / 256, 0.5)


def smooth_noise(size: int, rng: np.random.Generator, sigma: float) -> Array:
    """Draw noise ``(size, size)`` with mean 0 and standard deviation 1, smooth over ``sigma`` pixels."""
    # Coarse noise is drawn on a coarse grid: as smooth, and much faster than a wide filter.
    step = max(1, int(sigma / 3))
    side = -(-size // step) + (step > 1)
    coarse = rng.standard_normal((side, side)).astype(np.float32)
    coarse = ndimage.gaussian_filter(coarse, sigma / step, mode="wrap")
    if step > 1:
        position = np.arange(size, dtype=np.float32) / step
        coarse = ndimage.map_coordinates(coarse, np.meshgrid(position, position, indexing="ij"), order=1, mode="wrap")
    return (coarse - coarse.mean()) / (coarse.std() + 1e-6)


def _axes(
    size: int, angle: float, rng: np.random.Generator, pitch: float, wobble: float = 0.12
) -> tuple[Array, Array, Array, Array]:
    """Give rotated coordinates (across, along), slightly bent, with a random offset, and the same before bending."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    angle += np.deg2rad(rng.uniform(-1.0, 1.0))
    offset = rng.uniform(0, 64 * pitch, 2)
    across = (x * np.cos(angle) + y * np.sin(angle) + offset[0]).astype(np.float32)
    along = (-x * np.sin(angle) + y * np.cos(angle) + offset[1]).astype(np.float32)
    bent_across = across + wobble * pitch * smooth_noise(size, rng, size / 6)
    bent_along = along + wobble * pitch * smooth_noise(size, rng, size / 6)
    return bent_across, bent_along, across, along


def _streaks(size: int, rng: np.random.Generator, across: Array, along: Array, extent: tuple[float, float]) -> Array:
    """Noise drawn out along the coordinates: extent is the smoothing in pixels (across, along)."""
    noise = ndimage.gaussian_filter(rng.standard_normal((size, size)).astype(np.float32), extent, mode="wrap")
    noise = noise / (noise.std() + 1e-6)
    return ndimage.map_coordinates(noise, [across % size, along % size], order=1, mode="grid-wrap")


def _per_thread(index: NDArray[np.int64], rng: np.random.Generator) -> Array:
    """One random value per thread, spread over its pixels."""
    return rng.standard_normal(251).astype(np.float32)[index % 251]


def _color(
    rng: np.random.Generator, hue: tuple[float, float], sat: tuple[float, float], value: tuple[float, float]
) -> Array:
    """Draw a colour from ranges of hue (a full turn is 1), saturation and value."""
    return np.array(colorsys.hsv_to_rgb(rng.uniform(*hue) % 1, rng.uniform(*sat), rng.uniform(*value)), np.float32)


def _photographed(surface: Array, threads: Array, bare: Array, pitch: float, rng: np.random.Generator) -> Texture:
    """Add lighting and noise to a surface: the part all families share."""
    size = surface.shape[0]
    y, x = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
    direction, slope = rng.uniform(0, _TAU), rng.uniform(0.0, 0.08)
    light = rng.uniform(0.97, 1.03) + slope * (x * np.cos(direction) + y * np.sin(direction))
    noise = 0.012 * rng.standard_normal((size, size, 1)) + 0.006 * rng.standard_normal((size, size, 3))
    return Texture(
        # Off the ends of the range, or clipping could swallow a defect.
        surface=np.clip(surface, _MARGIN, 1 - _MARGIN).astype(np.float32),
        threads=threads.astype(np.float32),
        bare=np.clip(bare, _MARGIN, 1 - _MARGIN).astype(np.float32),
        pitch=pitch,
        light=light[..., None].astype(np.float32),
        noise=noise.astype(np.float32),
    )


def weave(size: int, appearance: np.random.Generator, rng: np.random.Generator) -> Texture:
    """Draw woven fabric: warp and weft threads, in plain weave or twill.

    A thread is one warp thread, and under a missing one the bare weft shows.
    """
    hue = appearance.uniform()
    warp_color = _color(appearance, (hue, hue + 0.05), (0.15, 0.5), (0.6, 0.8))
    weft_color = _color(appearance, (hue + 0.05, hue + 0.15), (0.15, 0.5), (0.4, 0.6))
    angle = np.deg2rad(appearance.uniform(-20, 20))
    pitch = appearance.uniform(9, 13) * length_unit(size)
    order = int(appearance.integers(2, 5))

    across, along, flat_across, flat_along = _axes(size, angle, rng, pitch)
    u, v = across / pitch, along / pitch
    column, row = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    fibre_u, fibre_v = u - column - 0.5, v - row - 0.5
    warp_on_top = (column + row) % order == 0 if order > 2 else (column + row) % 2 == 0
    warp = 0.45 + 0.55 * np.cos(np.pi * fibre_u) * (0.75 + 0.25 * np.cos(np.pi * fibre_v))
    weft = 0.45 + 0.55 * np.cos(np.pi * fibre_v) * (0.75 + 0.25 * np.cos(np.pi * fibre_u))
    unit = length_unit(size)
    warp *= 1 + 0.04 * _per_thread(column, rng) + 0.05 * _streaks(size, rng, flat_across, flat_along, (0.7, 3 * unit))
    weft *= 1 + 0.04 * _per_thread(row, rng) + 0.05 * _streaks(size, rng, flat_across, flat_along, (3 * unit, 0.7))
    surface = np.where(warp_on_top[..., None], warp[..., None] * warp_color, weft[..., None] * weft_color)
    # Without the warp the weft lies loose: thinner, with dark gaps between its threads.
    gap = 0.2 + 0.55 * np.clip(np.cos(np.pi * fibre_v), 0, 1) ** 2
    return _photographed(surface, u, gap[..., None] * weft_color, pitch, rng)


def grain(size: int, appearance: np.random.Generator, rng: np.random.Generator) -> Texture:
    """Draw wood-like grain: wavering growth lines with fine fibres and pores along them.

    A thread is a band along the grain, torn down to darker plain wood where missing.
    """
    light_wood = _color(appearance, (0.06, 0.1), (0.35, 0.55), (0.68, 0.8))
    dark_wood = light_wood * np.array([0.68, 0.6, 0.52], np.float32)
    angle = np.deg2rad(appearance.uniform(-12, 12) + 90 * appearance.integers(0, 2))
    unit = length_unit(size)
    pitch = appearance.uniform(14, 20) * unit

    across, _, flat_across, flat_along = _axes(size, angle, rng, pitch, wobble=0.2)
    waver = _streaks(size, rng, flat_across, flat_along, (8 * unit, 40 * unit))
    u = (across + 0.35 * pitch * waver) / pitch
    line = np.floor(u).astype(np.int64)
    # Growth lines darken slowly and end abruptly.
    ring = (u - line) ** 2.5 * (1 + 0.25 * _per_thread(line, rng))
    ring = ndimage.gaussian_filter(ring, 0.8 * unit)
    fibre = _streaks(size, rng, flat_across, flat_along, (0.8 * unit, 14 * unit))
    pores = np.clip(_streaks(size, rng, flat_across, flat_along, (0.6 * unit, 5 * unit)) - 1.6, 0, 1)
    share = np.clip(0.15 + 0.6 * ring + 0.1 * fibre + 0.6 * pores, 0, 1)[..., None]
    surface = (1 - share) * light_wood + share * dark_wood
    torn = _local_mean(surface, pitch) * (0.82 + 0.04 * fibre[..., None])
    return _photographed(surface, across / pitch, torn, pitch, rng)


def grid(size: int, appearance: np.random.Generator, rng: np.random.Generator) -> Texture:
    """Draw a wire grid over a dark ground.

    A thread is one wire with the space beside it, and without it the crossing wires remain.
    """
    wire_color = _color(appearance, (0.05, 0.65), (0.03, 0.2), (0.65, 0.8))
    ground_color = _color(appearance, (0.5, 0.7), (0.1, 0.3), (0.18, 0.28))
    angle = np.deg2rad(appearance.uniform(-30, 30))
    pitch = appearance.uniform(17, 24) * length_unit(size)
    width = appearance.uniform(0.32, 0.44)

    across, along, _, _ = _axes(size, angle, rng, pitch, wobble=0.05)
    u, v = across / pitch, along / pitch
    column, row = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)

    def wires(position: Array, index: NDArray[np.int64]) -> tuple[Array, Array]:
        distance = np.abs(position - index - 0.5 - 0.012 * _per_thread(index, rng)) / (width / 2)
        cover = np.clip((1 - distance) * width * pitch / 2 + 0.5, 0, 1)
        shade = (0.45 + 0.55 * np.sqrt(np.clip(1 - distance**2, 0, 1))) * (1 + 0.03 * _per_thread(index, rng))
        return cover[..., None], shade[..., None]

    cover_u, shade_u = wires(u, column)
    cover_v, shade_v = wires(v, row)
    ground = ground_color * (1 + 0.08 * smooth_noise(size, rng, 2.0)[..., None])
    bare = cover_v * shade_v * wire_color + (1 - cover_v) * ground
    # Wires pass over and under each other in turn.
    over = ((column + row) % 2 == 0)[..., None]
    upper = cover_u * shade_u * wire_color + (1 - cover_u) * bare
    below = cover_u * shade_u * wire_color + (1 - cover_u) * ground
    lower = cover_v * shade_v * wire_color + (1 - cover_v) * below
    return _photographed(np.where(over, upper, lower), u, bare, pitch, rng)


def cells(size: int, appearance: np.random.Generator, rng: np.random.Generator) -> Texture:
    """Draw leather-like cells: domed Voronoi cells with dark creases between them.

    A thread is a band two thirds of a cell wide, worn to the local mean where missing.
    """
    color = _color(appearance, (0.0, 0.1), (0.4, 0.65), (0.5, 0.68))
    angle = np.deg2rad(appearance.uniform(-45, 45))
    stretch = appearance.uniform(1.0, 1.35)
    pitch = appearance.uniform(12, 17) * length_unit(size)
    sun = appearance.uniform(0, _TAU)

    across, along, _, _ = _axes(size, angle, rng, pitch, wobble=0.25)
    u, v = across / pitch, along / (pitch * stretch)
    column, row = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    jitter = rng.uniform(0.1, 0.9, (2, 97, 97)).astype(np.float32)
    tone = rng.standard_normal((97, 97)).astype(np.float32)
    nearest = np.full((size, size), 9.0, np.float32)
    second = nearest.copy()
    lean, cell_tone = np.zeros_like(nearest), np.zeros_like(nearest)
    # A cell's seed lies in its grid square, so the two nearest seeds are among the nine squares around a pixel.
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            key = ((column + i) % 97, (row + j) % 97)
            du, dv = u - (column + i + jitter[0][key]), v - (row + j + jitter[1][key])
            distance = np.sqrt(du**2 + dv**2)
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            nearest = np.where(closer, distance, nearest)
            lean = np.where(closer, du * np.cos(sun) + dv * np.sin(sun), lean)
            cell_tone = np.where(closer, tone[key], cell_tone)
    crease = np.clip((second - nearest) / 0.22, 0, 1)
    crease = crease**2 * (3 - 2 * crease)
    shade = (0.5 + 0.5 * crease) * (0.95 + 0.22 * lean + 0.04 * cell_tone) - 0.12 * nearest**2
    shade = shade + 0.02 * smooth_noise(size, rng, 1.0) + 0.02 * smooth_noise(size, rng, size / 8)
    surface = shade[..., None] * color
    return _photographed(surface, across / (pitch / 1.5), _local_mean(surface, pitch), pitch / 1.5, rng)


def speckle(size: int, appearance: np.random.Generator, rng: np.random.Generator) -> Texture:
    """Draw speckled stone: grains of two colours and two sizes in a ground colour.

    A thread is a narrow straight band, smeared to the darkened local mean where missing.
    """
    hue = appearance.uniform()
    ground = _color(appearance, (hue, hue + 0.05), (0.04, 0.2), (0.55, 0.68))
    dark = _color(appearance, (hue + 0.4, hue + 0.6), (0.05, 0.3), (0.22, 0.34))
    bright = _color(appearance, (hue, hue + 0.1), (0.02, 0.12), (0.8, 0.88))
    angle = np.deg2rad(appearance.uniform(-90, 90))
    unit = length_unit(size)
    coarse, fine = appearance.uniform(2.0, 2.6) * unit, appearance.uniform(0.9, 1.2) * unit
    pitch = 9 * unit

    across, _, _, _ = _axes(size, angle, rng, pitch)
    cloud = 0.05 * smooth_noise(size, rng, fine) + 0.015 * smooth_noise(size, rng, size / 8)
    surface = ground * (1 + cloud[..., None])
    for color, sigma, level in ((bright, coarse, 0.9), (dark, coarse, 1.05), (dark, fine, 1.5), (bright, fine, 1.6)):
        share = np.clip((smooth_noise(size, rng, sigma) - level) * 3, 0, 1)[..., None]
        surface = (1 - share) * surface + share * color
    return _photographed(surface, across / pitch, 0.88 * _local_mean(surface, pitch), pitch, rng)


def _local_mean(surface: Array, pitch: float) -> Array:
    """Smooth the structure away."""
    return ndimage.gaussian_filter(surface, (pitch, pitch, 0))


FAMILIES: dict[str, Family] = {"weave": weave, "grain": grain, "grid": grid, "cells": cells, "speckle": speckle}
"""The families by name."""
