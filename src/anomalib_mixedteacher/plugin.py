"""Everything that touches anomalib from outside.

anomalib 2.7 has no entry point for models of other packages. ``get_model`` and ``list_models`` look at the direct
subclasses of ``AnomalibModule``, ``class_path`` at the attributes of ``anomalib.models`` and its list of allowed
modules, and the command line at the classes that were imported.
"""

import sys
from collections.abc import Callable
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
    replace_readers()


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


def replace_readers() -> None:
    """Let anomalib read 16-bit images, which it would turn white, and images and masks upright and of any size.

    It ends when anomalib's ``read_image`` keeps 16 bits, and it and ``read_mask`` heed EXIF and take line scans. Ours
    are imported when they read: whatever imports ``anomalib.data`` gets no slower. Calling it again reaches modules
    that were imported since.
    """
    for name in ("read_image", "read_mask"):
        current = getattr(import_module("anomalib.data.utils.image"), name)
        theirs = getattr(current, "__wrapped__", current)
        ours = _reader(name, theirs) if current is theirs else current
        for module_name, module in list(sys.modules.items()):
            if module_name.partition(".")[0] == "anomalib" and getattr(module, name, None) is theirs:
                module.__dict__[name] = ours


def _reader(name: str, theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def read(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(f"{__package__}.decoding"), name)(*args, **kwargs)

    return read
