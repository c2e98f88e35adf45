"""Errors whose message is one sentence for the user, remedy included.

The package's own command prints the message alone; library users can catch the base class.
"""


class MixedTeacherError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigurationError(MixedTeacherError, ValueError):
    """An argument has a value the model cannot work with."""


class DataError(MixedTeacherError, ValueError):
    """A folder, an image or a mask is not what the data set needs."""


class WeightsError(MixedTeacherError, RuntimeError):
    """Teacher weights cannot be found, read or matched to the backbone."""


class TeacherNotLoadedError(WeightsError):
    """The model was used before its teachers received weights."""


class CalibrationError(MixedTeacherError, ValueError):
    """A threshold cannot be found from the good images at hand."""


class ExportedModelError(MixedTeacherError, RuntimeError):
    """An exported model's files are missing, damaged or do not belong together."""


class QuantizationError(MixedTeacherError, RuntimeError):
    """Quantisation would lose more of a model's quality than allowed."""


class CacheError(MixedTeacherError, RuntimeError):
    """The teachers' features cannot be kept; whoever meets this computes them again for each epoch."""
