"""``python -m anomalib_mixedteacher.benchmark.gradient_cost``: what MKD's heat maps cost for a batch, against loops.

The official code loops over the images, and with SmoothGrad over the noisy copies of each, and calls
``loss.backward()``, which differentiates all parameters as well, even the expert's, which it does not freeze
(``grad_calc`` in its ``test_functions.py``, ``Vgg16`` in its ``models/network.py``). The ratio to a loop that
differentiates the images only tells what the batch alone saves. All variants run in turn within one process.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from anomalib_mixedteacher.benchmark.timing import interleave
from anomalib_mixedteacher.models.mkd.torch_model import Localization, MkdModel

BATCHED = "batch"
OFFICIAL_LOOP = "loop that calls backward, as the official code does"
FROZEN_LOOP = "loop that calls backward with the expert frozen"
GRADIENT_LOOP = "loop that differentiates images only"


def maps_as_official(model: MkdModel, images: torch.Tensor) -> torch.Tensor:
    """Compute anomaly maps as the official code does, with an expert whose parameters are differentiated as well."""
    experts = nn.ModuleList(model.teachers.values()).requires_grad_(True)
    try:
        return maps_by_backward(model, images)
    finally:
        experts.requires_grad_(False).zero_grad()


def maps_by_backward(model: MkdModel, images: torch.Tensor) -> torch.Tensor:
    """Compute anomaly maps one ``backward`` after another, which differentiates the cloner's parameters as well."""

    def gradient_of(pixels: torch.Tensor) -> torch.Tensor:
        nn.ModuleList(model.students.values()).zero_grad()
        pixels = pixels.clone().requires_grad_()
        model.loss.score(*model.features(pixels)).sum().backward()
        return pixels.grad  # type: ignore[return-value]  # there is one after backward

    return _loop(model, images, gradient_of)


def maps_by_gradient(model: MkdModel, images: torch.Tensor) -> torch.Tensor:
    """Compute anomaly maps one image after another, differentiating nothing but the image."""

    def gradient_of(pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.clone().requires_grad_()
        return torch.autograd.grad(model.loss.score(*model.features(pixels)).sum(), pixels)[0]

    return _loop(model, images, gradient_of)


def ratios(
    model: MkdModel, images: torch.Tensor, repetitions: int, bfloat16: bool = False
) -> tuple[dict[str, float], float]:
    """Time the batched maps and the loops in turn.

    Args:
        model: Model in evaluation mode, with weights.
        images: Normalised images of shape ``(B, 3, H, W)``.
        repetitions: How often each is timed.
        bfloat16: Compute the batch in bfloat16, the loops in float32 nevertheless.

    Returns:
        Time of the batch as a fraction of each loop's, the median of the repetitions, by the loop's name; and the
        largest difference of a map from a loop's, as a fraction of the maps' maximum.
    """

    def batched() -> torch.Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
            return _finished(model(images).anomaly_map)

    calls = {
        BATCHED: batched,
        OFFICIAL_LOOP: lambda: _finished(maps_as_official(model, images)),
        FROZEN_LOOP: lambda: _finished(maps_by_backward(model, images)),
        GRADIENT_LOOP: lambda: _finished(maps_by_gradient(model, images)),
    }
    expected = calls[BATCHED]()
    difference = max(float((calls[name]() - expected).abs().max() / expected.max()) for name in calls)
    seconds = interleave(calls, repetitions, warmup=0)
    return {
        name: float(np.median(seconds[BATCHED] / times)) for name, times in seconds.items() if name != BATCHED
    }, difference


def _loop(model: MkdModel, images: torch.Tensor, gradient_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    hooks = []
    if model.localization == "guided_backprop":
        relus = [layer for layer in model.students.modules() if isinstance(layer, nn.ReLU)]
        hooks = [relu.register_full_backward_hook(_positive) for relu in relus]
    maps = []
    for image in images.split(1):
        gradients = [gradient_of(copy) for copy in _copies(model, image)]
        maps.append(model.anomaly_map_generator(torch.stack(gradients).mean(dim=0)))
    for hook in hooks:
        hook.remove()
    return torch.cat(maps)


def _positive(relu: nn.Module, inputs: Any, outputs: Any) -> Any:
    del relu, outputs
    return (inputs[0].clamp(min=0),)


def _copies(model: MkdModel, image: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield what is differentiated for an image: itself, or its noisy copies."""
    if model.localization != "smooth_grad":
        yield image
        return
    for noise in model.smooth_grad.noise:
        yield image + model.smooth_grad.scale * (image.max() - image.min()) * noise


def _finished(maps: torch.Tensor) -> torch.Tensor:
    """Wait until an accelerator has computed the maps."""
    return maps.cpu()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="gradient_cost", description=__doc__)
    parser.add_argument("--image-size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--localization", choices=get_args(Localization), default="gradient")
    parser.add_argument("--smooth-samples", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="of the batch; loops are in f32")
    settings = parser.parse_args()
    torch.manual_seed(0)
    model = MkdModel(localization=settings.localization, direction_weight=1.0, smooth_samples=settings.smooth_samples)
    model.load_teachers("random")
    model.eval().to(settings.device)
    images = torch.randn(settings.batch, 3, settings.image_size, settings.image_size, device=settings.device)
    fractions, difference = ratios(model, images, settings.repetitions, settings.precision == "bf16")
    threads = f", {torch.get_num_threads()} threads" if settings.device == "cpu" else ""
    print(
        f"{settings.localization}, {settings.batch} images of {settings.image_size} x {settings.image_size}, "
        f"{settings.device}{threads}, the batch in {settings.precision}; "
        f"maps differ by {difference:.1e} of their maximum"
    )
    for name, fraction in fractions.items():
        print(f"  the batch takes {fraction:.2f} of the time of a {name}")


if __name__ == "__main__":
    main()
