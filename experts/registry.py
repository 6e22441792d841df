"""Finds experts and segmenters by name: `x` is the one `Expert` or `Segmenter` subclass defined in `experts/x.py`.

A name with a dot is a module of the user's own, `my_package.my_expert`.
"""

import inspect
import pkgutil
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

import experts
from experts.base import Expert
from pipeline.errors import InputError

if TYPE_CHECKING:
    # It brings PyTorch, which the embedded experts do without.
    from experts.segmenter import Segmenter

Kind = TypeVar("Kind")


def expert_class(name: str) -> type[Expert]:
    """The expert of this name, not yet constructed: no weights are loaded.

    Raises:
        InputError: there is no such expert; the message names those there are.
    """
    return _class_of(name, Expert, "expert")  # type: ignore[type-abstract]


def segmenter_class(name: str) -> "type[Segmenter]":
    """The segmenter of this name, not yet constructed.

    Raises:
        InputError: there is no such segmenter; the message names those there are.
    """
    from experts.segmenter import Segmenter

    return _class_of(name, Segmenter, "segmenter")  # type: ignore[type-abstract]


def expert_names() -> list[str]:
    """Names of all experts in this folder, sorted. Imports every module of it, and with them PyTorch."""
    return _names_of(Expert)


def segmenter_names() -> list[str]:
    """Names of all segmenters in this folder, sorted."""
    from experts.segmenter import Segmenter

    return _names_of(Segmenter)


def missing(cls: "type[Expert] | type[Segmenter]") -> list[str]:
    """The modules of `cls.needs` that are not installed, in the order given."""
    return [module for module in cls.needs if find_spec(module) is None]


def _class_of(name: str, kind: type[Kind], noun: str) -> type[Kind]:
    module = name if "." in name else f"experts.{name}"
    # Looked up first, so that an import error inside the module itself is not taken for a missing one.
    found = _defined_in(module, kind) if _exists(module) else None
    if found is None:
        known = ", ".join(_names_of(kind))
        raise InputError(f"no {noun} '{name}': give one of {known}, or the module of your own as package.module")
    return found


def _names_of(kind: type) -> list[str]:
    names = [module.name for module in pkgutil.iter_modules(experts.__path__)]
    return sorted(name for name in names if _defined_in(f"experts.{name}", kind) is not None)


def _exists(module: str) -> bool:
    if not all(part.isidentifier() for part in module.split(".")):
        return False
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _defined_in(name: str, kind: type[Kind]) -> type[Kind] | None:
    module = import_module(name)
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, kind) and not inspect.isabstract(member) and member.__module__ == module.__name__
    ]
    if len(found) > 1:
        raise TypeError(f"{module.__name__} defines {len(found)} {kind.__name__}s, one per file is expected")
    return found[0] if found else None
