"""Comparison of a Qwen3 checkpoint with its conversion: every tensor bit by bit, parameter counts, the mask token."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qwen3llada.errors import InputError
from qwen3llada.modeling.loading import files_blamed
from qwen3llada.modeling.mask_token import load_any_tokenizer
from qwen3llada.modeling.qwen3_checkpoint import EMBEDDING, HEAD, check_tensors, model_type, read_qwen3_config
from qwen3llada.modeling.shards import Shards, find_shards

if TYPE_CHECKING:
    from torch import Tensor

ROWS_AT_ONCE = 4096  # of a tensor: only two chunks are ever in memory

Status = Literal["identical", "grown", "replaced", "missing", "unexpected", "shape", "dtype", "value"]
GOOD = ("identical", "grown", "replaced")


@dataclass(frozen=True)
class TensorComparison:
    """identical: bitwise equal; grown: the source's rows are bitwise equal, and rows were added below them.
    replaced: of an export's head, identical but for the mask token's row (`exported`).

    missing: only in the source; unexpected: only in the converted checkpoint; shape, dtype, value: these differ.
    """

    name: str
    status: Status
    shape: list[int]
    dtype: str
    parameters: int
    detail: str = ""


@dataclass(frozen=True)
class MaskFacts:
    """The mask token in the converted config and tokenizer, and the rows of the embedding."""

    id: int | None
    token: str | None
    tokenizer_id: int | None
    source_token: str | None
    tokenizer_size: int
    embedding_rows: int
    free_rows: int


@dataclass(frozen=True)
class Comparison:
    """Result of `compare_checkpoints`. A tied head is not counted again."""

    source: str
    converted: str
    tensors: list[TensorComparison]
    source_parameters: int
    converted_parameters: int
    embedding_parameters: int
    tied: bool
    mask: MaskFacts
    problems: list[str]

    @property
    def mismatches(self) -> list[TensorComparison]:
        return [tensor for tensor in self.tensors if tensor.status not in GOOD]

    @property
    def ok(self) -> bool:
        return not self.mismatches and not self.problems

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON: the summary first, the tensors last."""
        values = asdict(self)
        tensors = values.pop("tensors")
        return {"ok": self.ok, "summary": dict(Counter(t.status for t in self.tensors)), **values, "tensors": tensors}

    def raise_if_wrong(self) -> None:
        """Raises InputError in one line that names the first difference."""
        wrong = [f"{t.name}: {t.detail or t.status}" for t in self.mismatches] + self.problems
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise InputError(f"{self.converted} is not {self.source} converted: {wrong[0]}{more}")


def compare_checkpoints(source: str | Path, converted: str | Path) -> Comparison:
    """Compare the Qwen3 checkpoint `source` with the qwen3llada checkpoint `converted`, one chunk of a tensor at a
    time.

    Differences are reported, not raised. Raises: FileNotFoundError, InputError naming a folder or file that is missing,
    broken or of another kind of model.
    """
    from qwen3llada.modeling.modeling_qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    source, converted = Path(source), Path(converted)
    qwen3 = read_qwen3_config(source)
    if (kind := model_type(converted)) != Qwen3LLadaConfig.model_type:
        raise InputError(f"{converted}: is a {kind} checkpoint, but must be a {Qwen3LLadaConfig.model_type} one")
    with files_blamed(converted):
        config = Qwen3LLadaConfig.from_pretrained(converted, trust_remote_code=False)
    before, after = find_shards(source), find_shards(converted)
    names = [*before.tensors, *(name for name in after.tensors if name not in before.tensors)]
    mask = _mask_facts(source, converted, config.mask_token_id, after)
    problems = _mask_problems(mask, config.vocab_size)
    if qwen3.tie_word_embeddings != config.tie_word_embeddings:
        problems.append(f"tie_word_embeddings was {qwen3.tie_word_embeddings}, is {config.tie_word_embeddings}")
    tensors = [_compare(name, before, after) for name in names]
    if all(tensor.status in GOOD for tensor in tensors):
        try:
            check_tensors(after, Qwen3LLadaForMaskedLM, config)
        except ValueError as error:  # includes errors of the model class, which validates its config
            problems.append(str(error))
    return Comparison(
        source=str(source),
        converted=str(converted),
        tensors=tensors,
        source_parameters=_parameters(before, qwen3.tie_word_embeddings),
        converted_parameters=_parameters(after, config.tie_word_embeddings),
        embedding_parameters=after.tensors[EMBEDDING].size if EMBEDDING in after.tensors else 0,
        tied=bool(config.tie_word_embeddings),
        mask=mask,
        problems=problems,
    )


def _parameters(shards: Shards, tied: bool) -> int:
    return sum(tensor.size for name, tensor in shards.tensors.items() if not (tied and name == HEAD))


def _compare(name: str, before: Shards, after: Shards) -> TensorComparison:
    old, new = before.tensors.get(name), after.tensors.get(name)
    known = new or old
    assert known is not None
    status: Status = "identical"
    detail = ""
    if new is None:
        status, detail = "missing", "not in the converted checkpoint"
    elif old is None:
        status, detail = "unexpected", "not in the source"
    elif old.dtype != new.dtype:
        status, detail = "dtype", f"was {old.dtype}, is {new.dtype}"
    elif old.shape != new.shape and not (name in (EMBEDDING, HEAD) and _grown(old.shape, new.shape)):
        status, detail = "shape", f"was {list(old.shape)}, is {list(new.shape)}"
    elif detail := _difference(name, before, after):
        status = "value"
    elif old.shape != new.shape:
        status, detail = "grown", f"{new.shape[0] - old.shape[0]} rows added"
    return TensorComparison(name, status, list(known.shape), known.dtype, known.size, detail)


def _grown(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    return len(old) == len(new) and new[0] > old[0] and old[1:] == new[1:]


def _difference(name: str, before: Shards, after: Shards) -> str:
    """How the source's rows differ; "" if they do not."""
    count, largest = 0, 0.0
    # The converted tensor may have more rows than the source: cut its last chunk to the source's length.
    for old, new in zip(before.chunks(name, ROWS_AT_ONCE), after.chunks(name, ROWS_AT_ONCE), strict=False):
        new = new[: len(old)] if old.dim() else new
        differs = (bits(old) != bits(new)).any(-1)
        if differs.any():
            count += int(differs.sum())
            apart = (old.double() - new.double()).abs().flatten()[differs]
            largest = max(largest, float(apart.nan_to_num(nan=float("inf")).max()))
    return f"{count:,} of {before.tensors[name].size:,} values differ, by at most {largest:.3g}" if count else ""


def bits(tensor: "Tensor") -> "Tensor":
    """Bytes [n, element size]: NaN equals the same NaN, and 0 differs from -0."""
    import torch

    return tensor.contiguous().flatten().view(torch.uint8).view(tensor.numel(), tensor.element_size())


def _mask_facts(source: Path, converted: Path, mask_id: int | None, after: Shards) -> MaskFacts:
    tokenizer, original = load_any_tokenizer(converted), load_any_tokenizer(source)
    taken = {number: token for token, number in original.get_vocab().items()}
    rows = after.tensors[EMBEDDING].shape[0] if EMBEDDING in after.tensors else 0
    return MaskFacts(
        id=mask_id,
        token=tokenizer.mask_token,
        tokenizer_id=tokenizer.mask_token_id,
        source_token=taken.get(mask_id) if mask_id is not None else None,
        tokenizer_size=len(tokenizer),
        embedding_rows=rows,
        free_rows=rows - len(set(tokenizer.get_vocab().values())),
    )


def _mask_problems(mask: MaskFacts, vocab_size: int) -> list[str]:
    problems = []
    if mask.id is None or not 0 <= mask.id < mask.embedding_rows:
        problems.append(f"mask_token_id={mask.id} is not a row of the embedding, in [0, {mask.embedding_rows})")
    if mask.tokenizer_id != mask.id:
        problems.append(f"mask_token_id={mask.id}, but the tokenizer's mask token has the id {mask.tokenizer_id}")
    if vocab_size != mask.embedding_rows:
        problems.append(f"{vocab_size=}, but the embedding has {mask.embedding_rows} rows")
    return problems
