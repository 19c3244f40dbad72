"""The model's code without the packages that Transformers imports beside it and that sampling never calls."""

import gc
import sys


def import_model_code() -> None:
    """Import torch, Transformers and our model, and nothing for object detection or for compiling kernels.

    Transformers imports scipy, where it is installed, for losses of object detection: 400 modules, a tenth of the time
    until a first answer. torch imports triton, which makes kernels for GPUs, on machines without a GPU too. Both ask
    first whether the package is there. Python's own way to say no is None in `sys.modules`. Afterwards both packages
    can be imported as always, but Transformers and torch remember the answer for the rest of the process. So only a
    process that samples and ends calls this. Nothing is hidden from a process that has imported Transformers before.

    The garbage collector rests meanwhile: imports leave no garbage, and looking for it takes a tenth of their time.
    Afterwards it leaves alone what they made (`gc.freeze`), which nothing lets go before the process ends. To take a
    million objects apart at that moment would be a fifth of the time that the whole answer takes.
    """
    collects = gc.isenabled()
    gc.disable()
    hidden: list[str] = []
    try:
        import torch

        if "transformers" not in sys.modules:
            unneeded = ["scipy"] if torch.cuda.is_available() else ["scipy", "triton"]
            hidden = [name for name in unneeded if name not in sys.modules]
        sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is documented: import system, 5.3.1
        import qwen3llada.modeling.modeling_qwen3llada  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
        if "triton" not in sys.modules:  # it counts what is left of it when the process ends, and complains
            gc.freeze()
        if collects:
            gc.enable()
