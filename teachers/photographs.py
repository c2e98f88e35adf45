"""What a teacher is distilled on: photographs, noise, weaves and mixtures of them, as 8-bit images on the device.

Every image depends on the seed and on its number alone. A run that was interrupted draws the same ones again, and no
state of a random generator has to be kept.
"""

import io
import json
import math
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Generator, Tensor
from torch.nn import functional as F

SIDE = 288  # of a photograph, in pixels
SUFFIXES = {".dds", ".jpeg", ".jpg", ".png", ".tga", ".tif", ".tiff", ".webp"}
MARGIN = 16  # an image in the pool is larger by this than a view of it, in pixels
VIEWS = 8  # of each image in the pool, on average
CHAPTER = 64  # steps that share a pool

_ImageStream, _ViewStream = 0, 1


def load_photographs(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Load photographs, cropped to squares.

    Args:
        path: A folder, searched with all folders below it, or an ``.npz`` with ``jpeg`` (bytes of all files) and
            ``offsets``; a ``.json`` of the same name lists each one's ``package``, ``file`` and ``licence``.

    Returns:
        8-bit images of shape (N, 3, 288, 288), and where they come from, for the manifest.

    Raises:
        SystemExit: If there are none.
    """
    origin: dict[str, Any] = {"from": path.name}
    if path.suffix == ".npz":
        with np.load(path) as archive:
            content, offsets = archive["jpeg"], archive["offsets"]
        files: list[Any] = [io.BytesIO(content[a:b].tobytes()) for a, b in pairwise(offsets)]
        if (listing := path.with_suffix(".json")).exists():
            counts = Counter((item["package"], item["licence"]) for item in json.loads(listing.read_text()))
            origin["from"] = {}
            for (package, licence), count in sorted(counts.items()):
                origin["from"].setdefault(package, {})[licence] = count
    else:
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        msg = f"There are no photographs below {path}: name a folder with images, or an .npz."
        raise SystemExit(msg)
    squares = [np.asarray(ImageOps.fit(Image.open(file).convert("RGB"), (SIDE, SIDE))) for file in files]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous(), {"number": len(files), **origin}


def hold_out(photographs: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Part photographs into those that train and those that judge: an eighth, at most 32."""
    order = torch.randperm(len(photographs), generator=Generator().manual_seed(seed))
    number = max(1, min(32, len(photographs) // 8))
    return photographs[order[number:]], photographs[order[:number]]


def normalize(images: Tensor) -> Tensor:
    """Normalise RGB images of shape (B, 3, H, W) in [0, 1] as ImageNet's networks expect them."""
    mean, std = _statistics(images.device)
    return (images - mean) / std


@cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Give mean and deviation; copied to the device once, since a copy waits for it."""
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return mean.to(device), std.to(device)


class TrainingImages:
    """Batches without end.

    A pool of images is drawn once a chapter: warped photographs, noise, weaves, mixed and pasted into each other, in
    colour or grey. Drawing costs as much as a training step, so each is seen in several views, which cost little: a
    part of it, turned and mirrored, at another contrast and brightness, with noise.

    Args:
        photographs: 8-bit images of shape (N, 3, H, H), on the device that computes.
        batch: Images a step.
        size: Side of the views, in pixels.
        seed: 0 or more.
    """

    def __init__(self, photographs: Tensor, batch: int, size: int, seed: int) -> None:
        self.photographs = photographs
        self.device = photographs.device
        self.batch, self.size, self.seed = batch, size, seed
        self._chapter = -1
        self._pool = self._means = torch.empty(0)

    def views(self, step: int) -> Tensor:
        """Give the batch of a step: normalised images of shape (B, 3, S, S), channels last."""
        if self._chapter != step // CHAPTER:
            self._chapter = step // CHAPTER
            draws = max(1, CHAPTER // VIEWS)
            self._pool = torch.cat([self._draw(self._chapter * draws + number) for number in range(draws)])
            self._means = self._pool.float().mean((1, 2, 3)).view(-1, 1, 1, 1) / 255
        where = np.random.default_rng((self.seed, _ViewStream, step))
        top, left = where.integers(MARGIN + 1, size=2)
        transposed, *mirrored = where.random(3) < 0.5
        draw = _Uniform(self.device, self.seed, _ViewStream, step)

        chosen = torch.randint(len(self._pool), (self.batch,), generator=draw.generator, device=self.device)
        images = self._pool[:, top : top + self.size, left : left + self.size][chosen]
        images = images.transpose(1, 2) if transposed else images
        images = images.flip([axis for axis, mirror in zip((1, 2), mirrored, strict=True) if mirror]).contiguous()

        mean = self._means[chosen]
        level = (mean + draw(self.batch, -0.35, 0.35)).clamp(0.05, 0.95)
        views = (images / 255 - mean) * draw.log(self.batch, 0.12, 1.7) + level
        # one value for all channels, so that grey images stay grey
        amplitude = draw(self.batch, 0, 0.05) * (draw(self.batch) < 0.6)
        views += amplitude * torch.randn(*views.shape[:3], 1, generator=draw.generator, device=self.device)
        return normalize(views.clamp_(0, 1).permute(0, 3, 1, 2))

    def _draw(self, number: int) -> Tensor:
        """Draw 8-bit images of shape (B, S, S, 3)."""
        draw, count = _Uniform(self.device, self.seed, _ImageStream, number), self.batch
        size = self.size + MARGIN
        drawn, woven = math.ceil(0.2 * count), math.ceil(0.1 * count)
        images = torch.cat(
            [self._warped(draw, count - drawn - woven, size), _noise(draw, drawn, size), _weaves(draw, woven, size)]
        )
        images = images[torch.randperm(count, generator=draw.generator, device=self.device)]
        others = images[torch.randperm(count, generator=draw.generator, device=self.device)]
        share = torch.where(draw(count) < 0.25, draw(count, 0.3, 1), 1.0)
        images = share * images + (1 - share) * others
        images = torch.where(_rectangles(draw, count, size) & (draw(count) < 0.3), others, images)
        blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)
        images = torch.where(draw(count) < 0.2, blurred, images)
        tint = torch.exp(0.15 * torch.randn(count, 3, 1, 1, generator=draw.generator, device=self.device))
        images = torch.where(draw(count) < 0.5, images.mean(1, keepdim=True), images * tint)
        return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous()

    def _warped(self, draw: "_Uniform", count: int, size: int) -> Tensor:
        """Parts of photographs, turned, mirrored and stretched."""
        side = self.photographs.shape[-1]
        chosen = torch.randint(len(self.photographs), (count,), generator=draw.generator, device=self.device)
        seen = (draw.log(count, 0.5, 2.2) * size / side).clamp(max=1).flatten()  # share of the photograph's side
        angle, stretch = draw(count, -math.pi, math.pi).flatten(), draw.log(count, 0.78, 1.28).flatten()
        mirror = torch.where(draw(count).flatten() < 0.5, -1.0, 1.0)
        across, down = (draw(count, -1, 1).flatten() * (1 - seen) for _ in range(2))
        cos, sin = seen * angle.cos(), seen * angle.sin()
        rows = [
            torch.stack([cos * mirror * stretch, -sin, across], 1),
            torch.stack([sin * mirror * stretch, cos, down], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), [count, 3, size, size], align_corners=False)
        images = self.photographs[chosen] / 255
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


class _Uniform:
    """Uniform random numbers, one an image, of shape (N, 1, 1, 1)."""

    def __init__(self, device: torch.device, seed: int, stream: int, number: int) -> None:
        key = np.random.SeedSequence((seed, stream, number)).generate_state(1, np.uint64)[0]
        self.device = device
        self.generator = Generator(device).manual_seed(int(key >> np.uint64(1)))

    def __call__(self, count: int, low: float = 0, high: float = 1) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=self.generator, device=self.device) * (high - low) + low

    def log(self, count: int, low: float, high: float) -> Tensor:
        """Give numbers whose logarithm is uniform."""
        return torch.exp(self(count, math.log(low), math.log(high)))


def _noise(draw: _Uniform, count: int, size: int) -> Tensor:
    """Gaussian noise with a power-law spectrum or one band, in any direction; a third of it in two tones."""
    device = draw.device
    row, column = torch.fft.fftfreq(size, device=device)[:, None], torch.fft.rfftfreq(size, device=device)
    angle, squeeze = draw(count, 0, math.pi), draw.log(count, 0.22, 4.5)
    along, across = angle.cos() * column + angle.sin() * row, (angle.cos() * row - angle.sin() * column) * squeeze
    frequency = torch.hypot(along, across).clamp(min=1 / size)
    band = torch.exp(-((torch.log(frequency / draw.log(count, 2 / size, 0.5)) / draw.log(count, 0.1, 0.5)) ** 2))
    spectrum = torch.where(draw(count) < 0.4, band, frequency ** -draw(count, 0, 2.5))
    white = torch.randn(count, 3, size, size, generator=draw.generator, device=device)
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * spectrum, s=(size, size))
    noise = noise / noise.std((2, 3), keepdim=True).clamp(min=1e-6)
    return 0.5 + 0.18 * torch.where(draw(count) < 0.3, torch.tanh(4 * noise), noise)


def _weaves(draw: _Uniform, count: int, size: int) -> Tensor:
    """Two crossing wave trains between two colours: fabric, grids, brushed metal."""
    position = torch.arange(size, device=draw.device, dtype=torch.float32)
    angle, pattern = draw(count, 0, math.pi), torch.ones(1, device=draw.device)
    for turn in (0.0, math.pi / 2):
        along = (angle + turn).cos() * position + (angle + turn).sin() * position[:, None]
        wave = torch.sin(2 * math.pi * (draw.log(count, 1 / 48, 0.4) * along + draw(count)))
        pattern = pattern * torch.where(draw(count) < 0.3, 1.0, torch.tanh(draw.log(count, 0.5, 5) * wave))
    colours = torch.rand(2, count, 3, 1, 1, generator=draw.generator, device=draw.device)
    return torch.lerp(colours[0], colours[1], (0.5 + 0.5 * pattern).expand(count, 3, size, size))


def _rectangles(draw: _Uniform, count: int, size: int) -> Tensor:
    """Masks of shape (N, 1, S, S) of a rectangle each."""
    position = torch.linspace(0, 1, size, device=draw.device)
    within = [(position - draw(count)).abs() < draw(count, 0.01, 0.2) for _ in range(2)]
    return within[0] & within[1].transpose(2, 3)
