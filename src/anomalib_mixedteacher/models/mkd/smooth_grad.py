"""SmoothGrad: the mean gradient over noisy copies of the image."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from anomalib_mixedteacher.errors import ConfigurationError

SEED = 0
# Pixels that are differentiated at once: 8 images of 128 x 128, some 0.4 GB; more are slower on a CPU.
PIXELS_AT_ONCE = 2**17


class SmoothGrad(nn.Module):
    """Average a gradient over noisy copies of each image (Smilkov et al. 2017).

    The noise is the same for every image and every run, so that an image always gets the same map, from the exported
    model too.

    Args:
        samples: Noisy copies of an image.
        noise: Standard deviation of the noise as a fraction of the image's range, its maximum minus its minimum.

    Raises:
        ConfigurationError: If there is no sample.
    """

    noise: torch.Tensor

    def __init__(self, samples: int = 50, noise: float = 0.1) -> None:
        super().__init__()
        if samples < 1:
            msg = f"smooth_samples must be 1 or more, not {samples}."
            raise ConfigurationError(msg)
        self.samples = samples
        self.scale = noise
        self.register_buffer("noise", torch.empty(0), persistent=False)

    def forward(self, gradient_of: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Average the gradient.

        Args:
            gradient_of: Gradients of images, both of shape ``(N, 3, H, W)``.
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Mean gradients of shape ``(B, 3, H, W)``.

        Raises:
            ConfigurationError: If a graph of dynamic size is asked for.
        """
        noise = self._noise_for(images)
        extent = images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True)
        total = torch.zeros_like(images)
        for part in noise.split(self._samples_at_once(images)):
            noisy = images[:, None] + self.scale * extent[:, None] * part
            total = total + gradient_of(noisy.flatten(0, 1)).unflatten(0, (-1, len(part))).sum(dim=1)
        return total / self.samples

    def _samples_at_once(self, images: torch.Tensor) -> int:
        if torch.compiler.is_compiling():
            return self.samples  # one copy of the network in the graph
        return max(1, PIXELS_AT_ONCE // (images.shape[0] * images.shape[2] * images.shape[3]))

    def _noise_for(self, images: torch.Tensor) -> torch.Tensor:
        """Return standard normal noise of shape ``(samples, 3, H, W)``."""
        size = (images.shape[-2], images.shape[-1])
        if not all(isinstance(side, int) for side in size):
            msg = (
                "localization='smooth_grad' needs a graph of fixed size, which holds the noise: give input_size, or a "
                "pre-processor that resizes, or use another localization."
            )
            raise ConfigurationError(msg)
        if self.noise.shape[-2:] == size:
            return self.noise.to(images)
        # not torch's generator: an exported graph would draw anew
        values = np.random.default_rng(SEED).standard_normal((self.samples, 3, *size), dtype=np.float32)
        if torch.compiler.is_compiling():
            return torch.from_numpy(values).to(images)
        with torch.inference_mode(False):
            self.noise = torch.from_numpy(values).to(images)
        return self.noise
