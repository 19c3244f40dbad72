"""A checkpoint against what was exported from it for another engine: every tensor, a piece at a time."""

from pathlib import Path
from typing import TYPE_CHECKING

from qwen3llada.artifacts import read_json
from qwen3llada.errors import InputError
from qwen3llada.modeling.analyze import GOOD, ROWS_AT_ONCE, TensorComparison, bits
from qwen3llada.modeling.qwen3_checkpoint import EMBEDDING, HEAD
from qwen3llada.modeling.shards import Shards, find_shards

if TYPE_CHECKING:
    from torch import Tensor

TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def compare_exported(model: str | Path, exported: str | Path) -> list[TensorComparison]:
    """Every tensor of the checkpoint `model` against that of the folder `exported`.

    identical: in every bit, rounded to the exported type where that is another; replaced: so, but for the row of the
    mask token in the head. The head is compared with the embedding where it was tied to it.
    Raises: FileNotFoundError, InputError naming a folder or file that is missing or broken.
    """
    before, after = find_shards(Path(model)), find_shards(Path(exported))
    mask_token_id = read_json(Path(model) / "config.json").get("mask_token_id")
    names = dict.fromkeys([*before.tensors, HEAD, *after.tensors])
    return [_compare(name, before, after, mask_token_id) for name in names]


def check_exported(model: str | Path, exported: str | Path) -> list[TensorComparison]:
    """`compare_exported`. Raises InputError in one line if a tensor differs."""
    compared = compare_exported(model, exported)
    wrong = [tensor for tensor in compared if tensor.status not in GOOD]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(f"{exported} is not {model} exported: {wrong[0].name}: {wrong[0].detail}{more}")
    return compared


def _compare(name: str, before: Shards, after: Shards, mask_token_id: int) -> TensorComparison:
    source = EMBEDDING if name == HEAD and HEAD not in before.tensors else name
    old, new = before.tensors.get(source), after.tensors.get(name)
    known = new or old
    assert known is not None

    def found(status, detail=""):
        return TensorComparison(name, status, list(known.shape), known.dtype, known.size, detail)

    if new is None:
        return found("missing", "not in the exported folder")
    if old is None:
        return found("unexpected", "not in the checkpoint")
    if old.shape != new.shape:
        return found("shape", f"was {list(old.shape)}, is {list(new.shape)}")
    differs = _rows_that_differ(source, name, before, after)
    if name == HEAD and differs in ([], [mask_token_id]):
        return found("replaced", f"row {mask_token_id} cannot win")
    return found("value", f"{len(differs):,} rows differ, the first is {differs[0]}") if differs else found("identical")


def _rows_that_differ(source: str, name: str, before: Shards, after: Shards) -> list[int]:
    import torch

    dtype = getattr(torch, TORCH_NAMES[after.tensors[name].dtype])
    rows, first = [], 0
    for old, new in zip(before.chunks(source, ROWS_AT_ONCE), after.chunks(name, ROWS_AT_ONCE), strict=True):
        unlike = _unlike(old.to(dtype), new)
        rows += (unlike.nonzero()[:, 0] + first).tolist()
        first += len(new) if new.dim() else 1
    return rows


def _unlike(old: "Tensor", new: "Tensor") -> "Tensor":
    """[rows] bool, where any bit of a row differs."""
    return (bits(old) != bits(new)).any(-1).reshape(len(new) if new.dim() else 1, -1).any(-1)
