"""Tokens per second of LMDeploy's engine and of this project's sampler: same weights, prompts, blocks and steps."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.decoding import Case, run_case

OURS, THEIRS = "ours", "LMDeploy"
ANSWER = 256  # tokens


class Row(NamedTuple):
    """A batch to decode: `steps` forward passes for each block of `block` tokens."""

    block: int
    steps: int
    batch: int
    prompt: int = 128

    @property
    def case(self) -> Case:
        given = {"block_length": self.block, "gen_length": ANSWER, "steps": ANSWER // self.block * self.steps}
        return Case(batch=self.batch, given=given, prompt=self.prompt)


ROWS = (  # the most important ones first: a time limit cuts the end
    *(Row(32, 32, batch) for batch in (8, 1, 64, 128)),
    *(Row(32, 8, batch) for batch in (128, 64)),
    Row(32, 32, 8, 3800),
    *(Row(4, 4, batch) for batch in (128, 1, 8, 64)),
)


def parts(rows: Sequence[Row] = ROWS) -> list[tuple[str, int | None]]:
    """The processes in their order: an engine and its block length. LMDeploy has one block length for its life."""
    first, *others = dict.fromkeys(row.block for row in rows)
    return [(THEIRS, first), (OURS, None), *((THEIRS, block) for block in others)]


def measure(engine: str, block: int | None, model: Path, exported: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """The rows of one process, as far as they begin within `seconds`."""
    begin = time.perf_counter()
    rows = [row for row in ROWS if block in (None, row.block)]
    time_row, note = _ours(model) if engine == OURS else _theirs(exported, rows)
    yield {"engine": engine, "note": f"ready after {time.perf_counter() - begin:.0f} s{note}"}
    for row in rows:
        if time.perf_counter() - begin > seconds:
            yield {"engine": engine, "note": f"no time for the rest, from {row} on"}
            return
        taken, tokens, note = time_row(row)
        yield {"engine": engine, "row": list(row), "rate": tokens / taken, "seconds": taken, "note": note}


def _ours(model: Path) -> tuple[Callable[[Row], tuple[float, int, str]], str]:
    import torch

    from qwen3llada.modeling.loading import load_pretrained

    loaded = load_pretrained(model, dtype=torch.bfloat16).cuda().eval()

    def time_row(row: Row) -> tuple[float, int, str]:
        taken, found = run_case(loaded, row.case)
        return taken, row.batch * ANSWER, f"{found.forward_passes} passes, {found.backend}"

    return time_row, ""


def _theirs(exported: Path, rows: Sequence[Row]) -> tuple[Callable[[Row], tuple[float, int, str]], str]:
    from bench.lmdeploy_engine import Engine

    engine = Engine(exported, rows[0].block, sorted({row.batch for row in rows}))

    def time_row(row: Row) -> tuple[float, int, str]:
        engine.steps = row.steps
        prompts = row.case.prompts()
        engine.answer(prompts, 2 * row.block)  # kernels of this shape
        best, tokens = float("inf"), 0
        for _ in range(row.case.repeats):
            begin = time.perf_counter()
            answers = engine.answer(prompts, ANSWER)
            best, tokens = min(best, time.perf_counter() - begin), sum(map(len, answers))
        short = "" if tokens == row.batch * ANSWER else f"{tokens} tokens instead of {row.batch * ANSWER}"
        return best, tokens, short

    return time_row, f", engine up in {engine.seconds:.0f} s"


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Lines of Markdown: the rates of both engines and their ratio, rows in their order; "-" where there is none."""
    rates = {(one["engine"], Row(*one["row"])): one["rate"] for one in found if "row" in one}
    lines = ["| block, steps | batch | prompt | LMDeploy | ours | times |", "|---|---|---|---|---|---|"]
    for row in sorted(ROWS, key=lambda row: (-row.block, row.prompt, -row.steps, row.batch)):
        theirs, ours = (rates.get((engine, row)) for engine in (THEIRS, OURS))
        shown = [f"{rate:,.0f}" if rate else "-" for rate in (theirs, ours)]
        times = f"{ours / theirs:.2f}" if ours and theirs else "-"
        cells = [f"{row.block}, {row.steps}", row.batch, f"{row.prompt:,}", *shown, times]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
