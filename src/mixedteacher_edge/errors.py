"""Errors whose message is one sentence for the user, remedy included; the command prints the message alone."""


class MixedTeacherError(Exception):
    """Base of every error that is raised on purpose."""


class ConfigurationError(MixedTeacherError, ValueError):
    """An argument has a value that cannot be worked with."""


class DataError(MixedTeacherError, ValueError):
    """A folder, an image or a mask is not what is needed."""


class CalibrationError(MixedTeacherError, ValueError):
    """A threshold cannot be found from the good images at hand."""


class ExportedModelError(MixedTeacherError, RuntimeError):
    """An exported model's files are missing, damaged or do not belong together."""
