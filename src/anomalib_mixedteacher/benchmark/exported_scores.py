"""Image AUROC of an exported file, from its own scores."""

from dataclasses import dataclass

import numpy as np
import torch
from anomalib.data import AnomalibDataset
from torchmetrics.functional.classification import binary_auroc
from torchvision.transforms.v2 import functional

from anomalib_mixedteacher.benchmark.exported_file import ExportedFile, input_size
from anomalib_mixedteacher.components.raw_scores import to_unit_range

_OUTPUT = "pred_score"


@dataclass(frozen=True)
class FileScore:
    """How well a file tells bad images from good ones.

    Attributes:
        auroc: Image AUROC in ``[0, 1]``.
        mostly_tied: More than half of the scores are 0 or 1, where anomalib's normalisation clamps them: such images
            cannot be ranked, and the AUROC is not that of the model's raw scores.
    """

    auroc: float
    mostly_tied: bool


def score_file(file: ExportedFile, test: AnomalibDataset) -> FileScore | None:
    """Predict test images with a file.

    Args:
        file: The file; a graph of fixed size gets the images resized with antialiasing, as its pre-processor would.
        test: Images in ``[0, 1]`` with labels, as read: no model's transform among the augmentations.

    Returns:
        AUROC; ``None`` where the file gives no ``pred_score``.
    """
    model = file.read()
    if not any(_OUTPUT in output.names for output in model.outputs):
        return None
    size = input_size(model)
    compiled = file.compile(model)
    scores, labels = [], []
    for index in range(len(test)):
        item = test[index]
        image = torch.as_tensor(item.image)
        if size is not None:
            image = functional.resize(image, list(size), antialias=True)
        scores.append(float(np.ravel(compiled(image[None].numpy())[_OUTPUT])[0]))
        labels.append(int(torch.as_tensor(item.gt_label)))
    values = torch.tensor(scores)
    tied = ((values == 0) | (values == 1)).float().mean().item()
    return FileScore(binary_auroc(to_unit_range(values), torch.tensor(labels)).item(), tied > 0.5)
