"""Everything that touches anomalib from outside.

anomalib 2.7 has no entry point for models of other packages. ``get_model`` and ``list_models`` look at the direct
subclasses of ``AnomalibModule``, ``class_path`` at the attributes of ``anomalib.models`` and its list of allowed
modules, and the command line at the classes that were imported.
"""

import sys
from functools import wraps
from importlib import import_module
from typing import Any

# Name -> defining module. Not the packages that re-export the names: the hook may run while these are being imported.
MODELS = {
    "MixedTeacher": "models.mixed_teacher.lightning_model",
    "Mkd": "models.mkd.lightning_model",
    "Msfd": "models.msfd.lightning_model",
}
COMPONENTS = {"NormalCalibratedPostProcessor": "post_processing"}
DATAMODULES = {
    "Elpv": "data.elpv",
    "MagneticTile": "data.magnetic_tile",
    "OneClass": "data.one_class",
    "SyntheticTextures": "data.synthetic_textures",
}


def register() -> None:
    """Make the package's models and datamodules known to anomalib. Calling it again changes nothing.

    anomalib knows classes of its own modules only. It ends when anomalib reads the entry points ``anomalib.models``.
    """
    # import_module, since the hook runs before Python makes the module an attribute of its parent
    anomalib_models, anomalib_data = import_module("anomalib.models"), import_module("anomalib.data")
    anomalib_models.ALLOWED_MODULES.update({str(__package__), f"{__package__}.models"})
    for name in MODELS:
        setattr(anomalib_models, name, public(name))
        if name not in anomalib_models.__all__:
            anomalib_models.__all__.append(name)
    anomalib_data.__dict__["__getattr__"] = _datamodule  # get_datamodule looks there
    read_sixteen_bits()


def register_datamodules() -> None:
    """Import the datamodules: the command line knows the short names of classes that were imported."""
    for name in DATAMODULES:
        public(name)


def _datamodule(name: str) -> object:
    if name in DATAMODULES:
        return public(name)
    msg = f"module 'anomalib.data' has no attribute {name!r}"
    raise AttributeError(msg)


def public(name: str) -> object:
    """Resolve one of the package's public names."""
    return getattr(import_module(f"{__package__}.{(MODELS | COMPONENTS | DATAMODULES)[name]}"), name)


def read_sixteen_bits() -> None:
    """Let anomalib's data sets and inferencers read 16-bit images, which they would turn white, and upright ones.

    It ends when anomalib's ``read_image`` keeps 16 bits and heeds EXIF. The reader is imported when it reads: whatever
    imports ``anomalib.data`` gets no slower. Calling it again reaches modules that were imported since.
    """
    current = import_module("anomalib.data.utils.image").read_image
    theirs = getattr(current, "__wrapped__", current)

    @wraps(theirs)
    def read_image(*args: Any, **kwargs: Any) -> Any:
        return import_module(f"{__package__}.decoding").read_image(*args, **kwargs)

    ours = read_image if current is theirs else current
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "anomalib" and getattr(module, "read_image", None) is theirs:
            module.__dict__["read_image"] = ours
