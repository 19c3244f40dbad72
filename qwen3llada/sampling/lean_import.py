"""Import of the model's code without packages that Transformers imports and sampling never calls."""

import gc
import importlib
import importlib.util
import logging
import os
import sys
from typing import Any, NoReturn

MODEL_CODE = "qwen3llada.modeling.modeling_qwen3llada"
UNNEEDED = ("scipy", "sklearn", "accelerate")
log = logging.getLogger(__name__)


def import_model_code() -> None:
    """Import torch, Transformers and our model, without packages and work that sampling does not need.

    Transformers imports scipy, if installed, for object detection losses: 400 modules and a tenth of the time to a
    first answer; in some versions scikit-learn, which imports scipy, for a way of sampling; and Accelerate, to spread a
    model over devices. torch imports triton even on machines without a GPU.
    Both first ask whether the package is available, and None in `sys.modules` is Python's documented way to say no.
    Afterwards the packages can be imported as usual, but Transformers and torch remember the answer for the rest of the
    process, so only a process that samples and ends may call this. A process that has already imported Transformers
    keeps all packages.

    `transformers.models` searches its 400 folders for names as soon as it is imported, another tenth of the time. A
    package that does so when a name is first looked up in it stands in its place.

    The garbage collector is off during the imports: they leave no garbage, and looking for it takes a tenth of their
    time. `gc.freeze` then exempts the imported objects from collection. Collecting a million of them at exit would take
    a fifth of the time of a whole answer.

    If a package cannot do without one that is hidden, everything is imported as usual, which takes longer.
    """
    collects, before = gc.isenabled(), set(sys.modules)
    gc.disable()
    try:
        try:
            _import_without_unneeded()
        except ImportError as error:
            log.warning("all packages are imported, which takes longer: %s", error)
            for name in set(sys.modules) - before:
                if name.split(".")[0] in ("transformers", "qwen3llada"):
                    del sys.modules[name]
            importlib.import_module(MODEL_CODE)
    finally:
        if "triton" not in sys.modules:  # triton counts its remaining objects at exit, and complains
            gc.freeze()
        if collects:
            gc.enable()


def _import_without_unneeded() -> None:
    import torch

    hidden: list[str] = []
    try:
        if "transformers" not in sys.modules:
            unneeded = [*UNNEEDED] + ([] if torch.cuda.is_available() else ["triton"])
            hidden = [name for name in unneeded if name not in sys.modules]
            sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: import system, 5.3.1
            _import_at_first_look("transformers.models")
        importlib.import_module(MODEL_CODE)
    finally:
        for name in hidden:
            del sys.modules[name]


def _import_at_first_look(name: str) -> None:
    """Let modules in the package be imported without running its own code, until something is looked up in it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    package: Any = importlib.util.module_from_spec(spec)

    def look_up(attribute: str) -> Any:
        if sys.modules.get(name) is package:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    package.__getattr__ = look_up  # called for what the package does not have (PEP 562)
    sys.modules[name] = package


def end_at_once() -> NoReturn:
    """End the process with status 0, without taking the interpreter apart.

    With torch and Transformers loaded, that takes a third of a second and frees what the operating system frees anyway.
    Output is flushed first. Functions registered with `atexit` do not run, and no thread is waited for, so only the
    last line of a process may call this, after all files have been closed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
