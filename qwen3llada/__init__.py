"""Qwen3 as a LLaDA-style masked diffusion language model.

Importing the package makes its models known to Transformers' Auto classes. It costs nothing until they are used: torch
and Transformers take seconds to import, and much of the package works without them.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen3llada.modeling.configuration_qwen3llada import Qwen3LLadaConfig
    from qwen3llada.modeling.modeling_qwen3llada import Qwen3LLadaForMaskedLM, Qwen3LLadaModel

__all__ = ["Qwen3LLadaConfig", "Qwen3LLadaForMaskedLM", "Qwen3LLadaModel"]

_MODELS = "qwen3llada.modeling.modeling_qwen3llada"  # importing it registers the Auto classes
_AUTO_CLASSES = "transformers.models.auto.modeling_auto"


class _WithTheAutoClasses(MetaPathFinder):
    """Imports our models right after Transformers' Auto classes for models, whenever those are first imported."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _AUTO_CLASSES:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_then_register(module):
            execute(module)
            importlib.import_module(_MODELS)

        spec.loader.exec_module = execute_then_register  # type: ignore[method-assign]
        return spec


if _AUTO_CLASSES in sys.modules:
    importlib.import_module(_MODELS)
else:
    sys.meta_path.insert(0, _WithTheAutoClasses())


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODELS), name)
