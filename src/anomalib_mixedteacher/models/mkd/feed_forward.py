"""The gradient of the anomaly score with respect to the image, as feed-forward operations.

Neither ONNX nor OpenVINO can differentiate. But the gradient of a chain of convolutions, batch normalisations, ReLUs
and max-poolings is a chain as well: the same layers backwards, each fed with what it saw on the way forward.
"""

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.components.feature_extractor import PooledBlocks
from anomalib_mixedteacher.models.mkd.loss import NAME, SCORED, MkdLoss


def score_and_gradient(
    expert: PooledBlocks, cloner: PooledBlocks, loss: MkdLoss, images: torch.Tensor, guided: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute what :func:`~anomalib_mixedteacher.models.mkd.gradient.score_and_gradient` does, without autograd.

    Args:
        expert: The expert.
        cloner: The cloner, in evaluation mode.
        loss: Tells the score.
        images: Normalised images of shape ``(B, 3, H, W)``.
        guided: Guided backpropagation: negative gradients stop at the outputs of the cloner's ReLUs.

    Returns:
        Scores of shape ``(B,)`` and gradients of shape ``(B, 3, H, W)``.
    """
    with torch.no_grad():
        expert_steps, cloner_steps = _forward(expert, images), _forward(cloner, images)
        features = {NAME: _maps(expert, expert_steps)}, {NAME: _maps(cloner, cloner_steps)}
        to_expert, to_cloner = loss.score_gradient(*features)
        gradient = _backward(expert, expert_steps, to_expert) + _backward(cloner, cloner_steps, to_cloner, guided)
        return loss.score(*features), gradient


def _forward(net: PooledBlocks, images: torch.Tensor) -> list[torch.Tensor]:
    """Compute the input of each layer, and the output of the last."""
    steps = [images]
    for layer in net.features:
        steps.append(layer(steps[-1]))
    return steps


def _maps(net: PooledBlocks, steps: list[torch.Tensor]) -> list[torch.Tensor]:
    return [steps[end + 1] for end in net.ends]


def _backward(
    net: PooledBlocks, steps: list[torch.Tensor], gradients: list[torch.Tensor], guided: bool = False
) -> torch.Tensor:
    """Lead the gradients of the last maps back to the image."""
    entering = dict(zip(net.ends[-SCORED:-1], gradients[:-1], strict=True))
    gradient = gradients[-1]
    for position in range(net.ends[-1], -1, -1):
        if position in entering:
            gradient = gradient + entering[position]
        gradient = _through(net.features[position], gradient, steps[position], steps[position + 1], guided)
    return gradient


def _through(layer: nn.Module, gradient: torch.Tensor, x: torch.Tensor, y: torch.Tensor, guided: bool) -> torch.Tensor:
    """Turn the gradient of a layer's output ``y`` into that of its input ``x``."""
    if isinstance(layer, nn.Conv2d):
        # The transposed convolution as a plain one: OpenVINO (2026.4) packs weights that a convolution and a transposed
        # one share for the first only, and the second gives wrong numbers.
        return F.conv2d(gradient, layer.weight.transpose(0, 1).flip(2, 3), padding=layer.padding)
    if isinstance(layer, nn.BatchNorm2d):
        variance = cast("torch.Tensor", layer.running_var)
        return gradient * (layer.weight * (variance + layer.eps).rsqrt())[:, None, None]
    if isinstance(layer, nn.ReLU):
        return torch.where(y > 0, gradient.clamp(min=0) if guided else gradient, 0)
    return _unpool(gradient, x, y)


def _unpool(gradient: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Give the gradient of a 2 x 2 max-pooling to the first maximum of each window, row by row, as torch does.

    Where an image is flat, a window often has several.
    """
    height, width = y.shape[-2:]
    corners = []
    left = gradient
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        maximum = x[:, :, row : 2 * height : 2, column : 2 * width : 2] == y
        corners.append(torch.where(maximum, left, 0))
        left = torch.where(maximum, 0, left)
    spread = F.pixel_shuffle(torch.stack(corners, dim=2).flatten(1, 2), 2)
    # an odd side's last row or column is in no window
    return F.pad(spread, (0, x.shape[-1] - 2 * width, 0, x.shape[-2] - 2 * height))
