"""Imports for a process that only scores: transformers without what it loads to train, compile and share out models.

Every model class imports `modeling_utils`, and that imports torch's compiler and distributed tensors with sympy, scipy
and sklearn: twice the time of torch itself. Here transformers finds none of them, as on a machine that lacks them, and
no function is marked for the compiler. All of it can be imported afterwards, but what transformers has not found it
does not look for again: this is for a process of our own, and not for a library.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_PACKAGES = ("scipy", "sklearn")
_COMPILER = "torch._dynamo"


@contextmanager
def lean_imports() -> Iterator[None]:
    """Inside, modules that import transformers are imported; other threads should not import anything meanwhile."""
    if "transformers" in sys.modules:  # as it is then
        yield
        return
    gc.disable()  # it would walk over modules that stay, again and again
    import torch
    import torch.distributed

    distributed: Any = torch.distributed
    is_available = distributed.is_available
    stand_ins: dict[str, Any] = {_COMPILER: _compiler(torch), **dict.fromkeys(_PACKAGES)}  # None: it cannot be imported
    hidden = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(hidden)
    distributed.is_available = lambda: False
    sys.meta_path.insert(0, finder := _Finder())
    try:
        _remember()
        yield
    finally:
        sys.meta_path.remove(finder)
        distributed.is_available = is_available
        for name in [name for name, module in hidden.items() if sys.modules.get(name) is module]:
            del sys.modules[name]
        gc.freeze()
        gc.enable()


def _remember() -> None:
    """Have transformers look for the packages now, since it remembers the answer."""
    from transformers.utils import import_utils

    for name in (*_PACKAGES, "torch_distributed"):
        getattr(import_utils, f"is_{name}_available", bool)()


def _compiler(torch: Any) -> ModuleType:
    """What decorators need of torch's compiler; its submodules are the real ones."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def disable(function: Any = None, recursive: bool = True, **_: Any) -> Any:
        return torch._compile._disable_dynamo(function, recursive)  # imports the compiler when the function is called

    def load(name: str) -> Any:  # whatever another release of transformers may want of it
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_COMPILER) is compiler:
            del sys.modules[_COMPILER]
        return getattr(import_module(_COMPILER), name)

    compiler = ModuleType(_COMPILER)
    module: Any = compiler
    module.__getattr__ = load
    module.__path__ = [f"{torch.__path__[0]}/_dynamo"]
    module.allow_in_graph = module.assume_constant_result = mark
    module.disable = disable
    return compiler


class _Finder(MetaPathFinder):
    """Quickens the search for names in all files of transformers' models, which it makes twice to import anything."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        if name != "transformers.utils.import_utils":
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if {"fetch__all__", "create_import_structure_from_path"} <= vars(module).keys():
                _quicken(module)

        loader.exec_module = exec_module
        return spec


def _quicken(module: Any) -> None:
    """Search each file once, and in its last lines alone."""
    exported, search = module.fetch__all__, module.create_import_structure_from_path

    def fetch__all__(content: str) -> Any:  # which walks over all lines to the last that begins so
        return exported(content[max(0, content.rfind("\n__all__")) :])

    module.fetch__all__ = fetch__all__
    module.create_import_structure_from_path = cache(getattr(search, "__wrapped__", search))
