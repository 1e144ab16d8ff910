"""The methods, one file each. Importing the package fills `registry` and exports what every file's `__all__` names.

A new file in this folder that registers a method is all that it takes to add one.
"""

import importlib
import pkgutil

from .base import (
    Distiller,
    LogitDistiller,
    Needs,
    Shapes,
    Stage,
    Step,
    Supervised,
    Transform,
    label_losses,
    register,
    registry,
    transform,
    transform_registry,
)

__all__ = ["Distiller", "LogitDistiller", "Needs", "Shapes", "Stage", "Step", "Supervised", "Transform"]
__all__ += ["label_losses", "register", "registry", "transform", "transform_registry"]

for _file in sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "__main__"):
    _module = importlib.import_module(f"{__name__}.{_file}")
    for _name in getattr(_module, "__all__", []):
        globals()[_name] = getattr(_module, _name)
        __all__.append(_name)
