"""The gradient of the anomaly score with respect to the image, by automatic differentiation."""

import torch
from torch import nn

from anomalib_mixedteacher.components.feature_extractor import PooledBlocks
from anomalib_mixedteacher.models.mkd.loss import NAME, MkdLoss


def score_and_gradient(
    expert: PooledBlocks, cloner: PooledBlocks, loss: MkdLoss, images: torch.Tensor, guided: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute each image's score and its gradient with one backward pass for the whole batch.

    An image's score does not depend on the other images, so the gradient of the sum of the scores holds the gradient of
    each. Works within ``torch.no_grad`` and ``torch.inference_mode``. No parameter's gradient is computed.

    Args:
        expert: The expert.
        cloner: The cloner, in evaluation mode.
        loss: Tells the score.
        images: Normalised images of shape ``(B, 3, H, W)``.
        guided: Guided backpropagation: negative gradients stop at the outputs of the cloner's ReLUs.

    Returns:
        Scores of shape ``(B,)`` and gradients of shape ``(B, 3, H, W)``.
    """
    with torch.inference_mode(False), torch.enable_grad():
        pixels = images.clone(memory_format=_memory_format(images)).requires_grad_()
        features = {NAME: expert(pixels)}, {NAME: _guided_maps(cloner, pixels) if guided else cloner(pixels)}
        score = loss.score(*features)
        (gradient,) = torch.autograd.grad(score.sum(), pixels)
    return score.detach(), gradient


def _memory_format(images: torch.Tensor) -> torch.memory_format:
    """Choose the faster layout: on CPUs channels last saves 5 % to 20 % from 64 x 64 on, and costs 50 % at 32 x 32."""
    large = images.device.type == "cpu" and images.shape[-2] * images.shape[-1] >= 64 * 64
    return torch.channels_last if large else torch.contiguous_format


def _guided_maps(cloner: PooledBlocks, images: torch.Tensor) -> list[torch.Tensor]:
    """Compute the cloner's maps such that negative gradients stop at its ReLUs."""
    maps = []
    x = images
    for position, layer in enumerate(cloner.features):
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            x.register_hook(lambda gradient: gradient.clamp(min=0))
        if position in cloner.ends:
            maps.append(x)
    return maps
