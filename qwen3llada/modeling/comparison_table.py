"""The comparison of two checkpoints as terminal tables."""

from collections import Counter

from rich.console import Console
from rich.table import Table

from qwen3llada.modeling.analyze import Comparison


def show(report: Comparison, console: Console | None = None) -> None:
    """Print the report: tensor counts by status, the facts, then every mismatch by name."""
    console = console or Console()
    counts = Table("tensors", title=f"{report.source} -> {report.converted}", title_justify="left")
    for column in ("count", "parameters"):
        counts.add_column(column, justify="right")
    for status, number in Counter(tensor.status for tensor in report.tensors).items():
        size = sum(tensor.parameters for tensor in report.tensors if tensor.status == status)
        counts.add_row(status, f"{number:,}", f"{size:,}")
    console.print(counts)
    facts = Table(show_header=False)
    for row in _facts(report):
        facts.add_row(*row)
    console.print(facts)
    if wrong := report.mismatches:
        table = Table("mismatch")
        table.add_column("tensor", overflow="fold")
        table.add_column("detail", overflow="fold")
        for tensor in wrong:
            table.add_row(tensor.status, tensor.name, tensor.detail)
        console.print(table)
    for problem in report.problems:
        console.print(f"problem: {problem}", markup=False)
    console.print("identical but for what conversion adds" if report.ok else "NOT the same model", markup=False)


def _facts(report: Comparison) -> list[tuple[str, str]]:
    mask = report.mask
    return [
        ("parameters", f"{report.converted_parameters:,} (source {report.source_parameters:,})"),
        ("of them embedding", f"{report.embedding_parameters:,}{', tied to the head' if report.tied else ''}"),
        ("mask token", f"{mask.token} = {mask.id}"),
        ("its id in the source's tokenizer", mask.source_token or "free"),
        ("tokenizer, embedding, rows left", f"{mask.tokenizer_size:,}, {mask.embedding_rows:,}, {mask.free_rows:,}"),
    ]
