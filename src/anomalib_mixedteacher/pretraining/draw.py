"""Batched random draws from one seeded generator."""

import math

import torch


class Draw:
    """Random numbers for a batch of images, all from one generator, so that a seed fixes the batch.

    Args:
        seed: Seed of the generator.
        device: Where the numbers are made. The CPU and a GPU give different numbers for one seed.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def copy(self) -> "Draw":
        """Give a draw that will make the same numbers as this one will."""
        twin = Draw(0, self.device)
        twin.generator.set_state(self.generator.get_state())
        return twin

    def uniform(self, shape: int | tuple[int, ...], low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Draw uniformly from ``[low, high)``; an ``int`` shape ``n`` gives ``(n, 1, 1)``, one number an image."""
        full = (shape, 1, 1) if isinstance(shape, int) else shape
        return low + (high - low) * torch.rand(full, generator=self.generator, device=self.device)

    def log_uniform(self, shape: int | tuple[int, ...], low: float, high: float) -> torch.Tensor:
        """Draw numbers whose logarithm is uniform between those of ``low`` and ``high``, both positive."""
        return self.uniform(shape, math.log(low), math.log(high)).exp()

    def normal(self, *shape: int) -> torch.Tensor:
        """Draw standard normal numbers."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def chance(self, shape: int | tuple[int, ...], probability: float) -> torch.Tensor:
        """Draw booleans that are true with a probability."""
        return self.uniform(shape) < probability

    def integers(self, shape: int | tuple[int, ...], low: int, high: int) -> torch.Tensor:
        """Draw integers from ``low`` to ``high - 1``."""
        full = (shape, 1, 1) if isinstance(shape, int) else shape
        return torch.randint(low, high, full, generator=self.generator, device=self.device)

    def permutation(self, n: int) -> torch.Tensor:
        """Draw an order of ``n`` things."""
        return torch.randperm(n, generator=self.generator, device=self.device)
