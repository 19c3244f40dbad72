"""The number of positions of a model, and the check of lengths against it."""

from pathlib import Path

from qwen3llada.artifacts import read_json
from qwen3llada.errors import InputError

KEY = "max_position_embeddings"


def positions(folder: Path) -> int | None:
    """Number of positions of the model in `folder`, from its config.json; None if it gives none."""
    values = read_json(folder / "config.json")
    limit = values.get(KEY) if isinstance(values, dict) else None
    return limit if isinstance(limit, int) else None


def check_positions(folder: Path, lengths: dict[str, int]) -> None:
    """Raises InputError if a length (knob -> tokens) exceeds the positions of the model in `folder`."""
    limit = positions(folder)
    for knob, length in lengths.items():
        if limit is not None and length > limit:
            raise InputError(f"{knob}={length} must not exceed the model's {KEY}={limit} ({folder / 'config.json'})")
