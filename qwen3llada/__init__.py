"""Qwen3 as a LLaDA-style masked diffusion language model.

    from qwen3llada import load, generate
    print(generate(load("out/qwen3llada-sft"), "What is Bruno's animal?", steps=32).text)

Importing any public name registers the models with Transformers' Auto classes. `import qwen3llada` alone does not:
importing torch and Transformers takes seconds, and much of the package works without them.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen3llada.modeling.configuration_qwen3llada import Qwen3LLadaConfig
    from qwen3llada.modeling.modeling_qwen3llada import Qwen3LLadaForMaskedLM, Qwen3LLadaModel
    from qwen3llada.sampling.dialogue.library import generate, load

__version__ = "0.1.0"
__all__ = ["Qwen3LLadaConfig", "Qwen3LLadaForMaskedLM", "Qwen3LLadaModel", "generate", "load"]

_MODELS = "qwen3llada.modeling.modeling_qwen3llada"  # registers the Auto classes when imported
_LIBRARY = "qwen3llada.sampling.dialogue.library"
_MODULES = dict.fromkeys(__all__, _MODELS) | {"generate": _LIBRARY, "load": _LIBRARY}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module(_MODELS)  # first, so that every public name registers the Auto classes
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
