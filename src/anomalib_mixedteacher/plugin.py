"""Everything that touches anomalib from outside.

anomalib 2.7 has no entry point for models of other packages. ``get_model`` and ``list_models`` look at the direct
subclasses of ``AnomalibModule``, ``class_path`` at the attributes of ``anomalib.models`` and its list of allowed
modules, and the command line at the classes that were imported.
"""

from importlib import import_module

MODELS = ("MixedTeacher",)
DATAMODULES = ("MagneticTile", "SyntheticTextures")


def register() -> None:
    """Make the package's models and datamodules known to anomalib. Calling it again changes nothing."""
    # import_module, since the hook runs before Python makes the module an attribute of its parent
    theirs = import_module("anomalib.models")
    if hasattr(theirs, MODELS[-1]):
        return
    package = __package__ or "anomalib_mixedteacher"
    theirs.ALLOWED_MODULES.update({package, f"{package}.models"})
    ours = import_module(f"{package}.models")
    for name in MODELS:
        setattr(theirs, name, getattr(ours, name))
        theirs.__all__.append(name)

    anomalib_data, our_data = import_module("anomalib.data"), import_module(f"{package}.data")
    for name in DATAMODULES:
        setattr(anomalib_data, name, getattr(our_data, name))
