"""What MKD's heat maps cost for a batch, against the official code's loop over the images.

python benchmarks/gradient_cost.py --image_size 128 --batch 8

The official code calls ``loss.backward()`` image by image, which differentiates all parameters as well, even the
expert's, which it does not freeze (``grad_calc`` in its ``test_functions.py``). The loop that differentiates the image
alone tells what the batch saves by itself.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli

from anomalib_mixedteacher import Mkd
from common import interleave, machine, table


def main(image_size: int = 128, batch: int = 8, repetitions: int = 5, teacher_weights: str = "random") -> None:
    """Print the batch's time as a share of each loop's, and how far their maps differ.

    Args:
        image_size: Side of the images in pixels.
        batch: Images.
        repetitions: How often each is timed.
        teacher_weights: Where the expert's weights come from.
    """
    torch.manual_seed(0)
    model: Any = Mkd(direction_weight=1.0).model.eval()
    for teacher in model.teachers.values():
        teacher.load(teacher_weights)
    images = torch.randn(batch, 3, image_size, image_size)
    expert = torch.nn.ModuleList(model.teachers.values())

    def by_image(gradient: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.cat([model.anomaly_map_generator(gradient(image)) for image in images.split(1)])

    def score(image: torch.Tensor) -> torch.Tensor:
        return model.loss.score(model.teacher_features(image), model.student_features(image))

    def backward(image: torch.Tensor) -> torch.Tensor:
        image = image.clone().requires_grad_()
        model.zero_grad()
        score(image).sum().backward()
        assert image.grad is not None
        return image.grad

    def of_image_alone(image: torch.Tensor) -> torch.Tensor:
        image = image.clone().requires_grad_()
        return torch.autograd.grad(score(image).sum(), image)[0]

    def officially() -> torch.Tensor:
        expert.requires_grad_(True)
        maps = by_image(backward)
        expert.requires_grad_(False)
        return maps

    calls: dict[str, Callable[[], torch.Tensor]] = {
        "batch": lambda: model(images).anomaly_map,
        "loop that calls backward, as the official code does": officially,
        "loop that calls backward with the expert frozen": lambda: by_image(backward),
        "loop that differentiates images only": lambda: by_image(of_image_alone),
    }
    expected, seconds = calls["batch"](), interleave(calls, repetitions, warmup=1)
    rows = []
    for name, call in list(calls.items())[1:]:
        difference = float((call() - expected).abs().max() / expected.max())
        rows.append([name, f"{np.median(seconds['batch'] / seconds[name]):.2f}", f"{difference:.1e}"])
    print(f"{batch} images of {image_size} x {image_size} pixels, {torch.get_num_threads()} threads, {machine()}\n")
    print(table(["loop", "batch / loop", "largest difference"], rows))


if __name__ == "__main__":
    auto_cli(main)
