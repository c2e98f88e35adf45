"""Start-up hook, run by the package's ``.pth`` file in every interpreter of its environment.

A module of its own rather than one of the package's, whose ``__init__`` would have to be loaded as well. It imports
nothing that the interpreter has not loaded already, and waits for modules of anomalib's. Behind ``anomalib.models`` the
plugin registers the package's models; behind ``anomalib.data``, which is all that a data loader's own process imports,
its data sets read files as this package does; behind ``anomalib.cli`` the command line knows the datamodules.
``ANOMALIB_MIXEDTEACHER_PLUGIN=0`` in the environment switches it off.
"""

import sys

# importlib.machinery.PathFinder, without the milliseconds that importing importlib.machinery takes
from _frozen_importlib_external import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

PACKAGE = "anomalib_mixedteacher"
TRIGGERS = {
    "anomalib.models": "register",
    "anomalib.data": "replace_readers",
    "anomalib.cli": "register_datamodules",
}  # module -> function of the plugin


class _Loader:
    """A module's own loader, which then calls what is due of the plugin.

    But not while a module of the package is being executed: that one may be what imported the trigger, and the plugin
    may need it: it is not complete yet.
    """

    due: "tuple[str, ...]" = ()
    executing = 0  # modules of the package

    def __init__(self, loader: "Any") -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def exec_module(self, module: "ModuleType") -> None:
        is_trigger = module.__name__ in TRIGGERS
        _Loader.executing += not is_trigger
        try:
            self._loader.exec_module(module)
        finally:
            _Loader.executing -= not is_trigger
        if is_trigger:
            _Loader.due += (TRIGGERS[module.__name__],)
        if _Loader.due and not _Loader.executing:
            due, _Loader.due = _Loader.due, ()
            _call_plugin(due)


def _call_plugin(functions: "tuple[str, ...]") -> None:
    try:
        from anomalib_mixedteacher import plugin

        for function in functions:
            getattr(plugin, function)()
    except Exception as error:
        import warnings

        warnings.warn(f"anomalib-mixedteacher could not register its models: {error!r}", stacklevel=2)


class _Finder:
    """Finds the trigger and the package's modules as the import system would, and wraps their loaders."""

    @staticmethod
    def find_spec(name: str, path: "Any" = None, target: "Any" = None) -> "ModuleSpec | None":
        if name not in TRIGGERS and name.partition(".")[0] != PACKAGE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


if not any(isinstance(finder, type) and finder.__name__ == _Finder.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _Finder)
