"""Qwen3 as a LLaDA-style masked diffusion language model.

Importing the package makes its models known to Transformers' Auto classes, as soon as Transformers itself is imported.
Until then it costs nothing: torch and Transformers take seconds to import, and much of the package works without them.
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

_CONFIGURATION = "qwen3llada.modeling.configuration_qwen3llada"
_MODELS = "qwen3llada.modeling.modeling_qwen3llada"  # importing it registers the Auto classes
_TRANSFORMERS = "transformers"


class _AfterTransformers(MetaPathFinder):
    """Imports our models right after Transformers, whenever that is first imported."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _TRANSFORMERS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_then_register(module):
            execute(module)
            if (
                _CONFIGURATION not in sys.modules
            ):  # else that file is importing Transformers; it imports the models itself
                importlib.import_module(_MODELS)

        spec.loader.exec_module = execute_then_register  # type: ignore[method-assign]
        return spec


if _TRANSFORMERS in sys.modules:
    importlib.import_module(_MODELS)
else:
    sys.meta_path.insert(0, _AfterTransformers())


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODELS), name)
