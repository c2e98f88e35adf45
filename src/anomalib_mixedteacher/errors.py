"""Errors whose message is one sentence for the user, remedy included.

The package's own command prints the message alone; library users can catch the base class.
"""

import re
import traceback
from importlib.util import find_spec

from mixedteacher_edge.errors import CalibrationError as CalibrationError
from mixedteacher_edge.errors import ConfigurationError as ConfigurationError
from mixedteacher_edge.errors import DataError as DataError
from mixedteacher_edge.errors import ExportedModelError as ExportedModelError
from mixedteacher_edge.errors import MixedTeacherError as MixedTeacherError

_LOGGERS = {"TensorBoard": "tensorboard", "MLFlow": "mlflow", "Wandb": "wandb", "Comet": "comet_ml"}


class WeightsError(MixedTeacherError, RuntimeError):
    """Teacher weights cannot be found, read or matched to the backbone."""


class TeacherNotLoadedError(WeightsError):
    """The model was used before its teachers received weights."""


class QuantizationError(MixedTeacherError, RuntimeError):
    """Quantisation would lose more of a model's quality than allowed."""


def sentence(error: Exception) -> str | None:
    """Give the one sentence of an error that the user can mend; ``None`` for any other error.

    Args:
        error: One of this package's errors, or one of those that anomalib raises for a user's mistake.
    """
    if isinstance(error, MixedTeacherError):
        # alone, out of what a data-loader worker wraps in its traceback
        lines = [line for line in str(error).splitlines() if line.strip()]
        return lines[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ") if lines else repr(error)
    if _of_masks(error):
        return (
            "The defective images and their masks do not match in number or name: draw the missing masks, an empty one "
            "for an image whose defect has no place, give each the name of its image, or leave mask_dir out."
        )
    if "not enough values to unpack" in str(error) and _raised_in(error, "_create_test_split", "_create_val_split"):
        return (
            "There are too few images to set some aside for test and validation: add images, or set none aside "
            "(test_split_mode and val_split_mode none)."
        )
    if isinstance(error, AttributeError) and "has no attribute 'val_data'" in str(error):
        return (
            "There are no validation images: set some of the training images aside (--data.val_split_mode from_train "
            "--data.val_split_ratio 0.2), or train without thresholds (--trainer.limit_val_batches 0)."
        )
    return _known(str(error)) if isinstance(error, ValueError | RuntimeError | OSError) else None


def _of_masks(error: Exception) -> bool:
    """Tell whether anomalib's Folder could not pair masks with images: it fails with numpy's message, or its own."""
    told = "boolean array indexing assignment" in str(error) or type(error).__name__ == "MisMatchError"
    return told and _raised_in(error, "make_folder_dataset")


def _raised_in(error: Exception, *functions: str) -> bool:
    """Tell whether an error came out of one of these functions."""
    return any(frame.name in functions for frame in traceback.extract_tb(error.__traceback__))


def _known(message: str) -> str | None:
    """Turn what others raise for a user's error into a sentence with its remedy; None for anything else."""
    if (missing := missing_logger(message)) is not None:
        return missing
    if "Union subtypes" in message:  # jsonargparse lists what a constructor raised among the types that do not fit
        return str(re.findall(r"^\s*- (.+)$", message, flags=re.MULTILINE)[-1])
    if match := re.match(r"Found 0 (?:DirType\.\w+ )?images in (.+?)(?: with extensions.*)?$", message):
        return f"There are no images in {match[1]}: put images there, or give another folder."
    if match := re.match(r"(Path (?:is too long|contains non-printable characters)): (.+)", message, flags=re.DOTALL):
        return (
            f"anomalib cannot read {match[2]!r} ({match[1].lower()}): move the data to a shorter path of ASCII "
            "characters, file names included."
        )
    if message.startswith("Expected more than 1 value per channel when training"):
        return (
            "A batch of one image, whose deepest features are a single position, has nothing for batch normalisation "
            "to learn from: choose a batch size that leaves no single image over, or larger images."
        )
    if match := re.search(r"(?:Path does not exist|Checkpoint file not found): (.+)", message):
        return f"There is no file or folder {match[1]}: check the path."
    return None


def missing_logger(message: str) -> str | None:
    """Say which package a logger lacks that a parser's message names; the message lists types, and not the package."""
    for name, package in _LOGGERS.items():
        if f"{name}Logger" in message and find_spec(package) is None:
            return f"The {name} logger needs a package that is not installed: pip install {package}."
    return None
