"""Finds experts by name: the expert `x` is the one `Expert` subclass defined in `experts/x.py`.

A name with a dot is a module of the user's own, `my_package.my_expert`.
"""

import inspect
import pkgutil
from importlib import import_module
from importlib.util import find_spec

import experts
from experts.base import Expert
from pipeline.errors import InputError


def expert_class(name: str) -> type[Expert]:
    """The expert of this name, not yet constructed: no weights are loaded.

    Raises:
        InputError: there is no such expert; the message names those there are.
    """
    module = name if "." in name else f"experts.{name}"
    # Looked up first, so that an import error inside the expert's own module is not taken for a missing one.
    found = _defined_in(module) if _exists(module) else None
    if found is None:
        known = ", ".join(expert_names())
        raise InputError(f"no expert '{name}': give one of {known}, or the module of your own as package.module")
    return found


def expert_names() -> list[str]:
    """Names of all experts in this folder, sorted; their heavy packages are not imported."""
    return sorted(name for name in _module_names() if _defined_in(f"experts.{name}") is not None)


def missing(cls: type[Expert]) -> list[str]:
    """The modules of `cls.needs` that are not installed, in the order given."""
    return [module for module in cls.needs if find_spec(module) is None]


def _module_names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(experts.__path__)]


def _exists(module: str) -> bool:
    if not all(part.isidentifier() for part in module.split(".")):
        return False
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _defined_in(name: str) -> type[Expert] | None:
    module = import_module(name)
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Expert) and not inspect.isabstract(member) and member.__module__ == module.__name__
    ]
    if len(found) > 1:
        raise TypeError(f"{module.__name__} defines {len(found)} experts, one per file is expected")
    return found[0] if found else None
