"""How long a sequence a model takes, and the refusal of a knob that asks for more."""

from pathlib import Path

from qwen3llada.artifacts import read_json
from qwen3llada.errors import InputError

KEY = "max_position_embeddings"


def positions(folder: Path) -> int | None:
    """The number of positions of the model in `folder`, by its config.json; None where the model names none."""
    values = read_json(folder / "config.json")
    limit = values.get(KEY) if isinstance(values, dict) else None
    return limit if isinstance(limit, int) else None


def check_positions(folder: Path, lengths: dict[str, int]) -> None:
    """Raises InputError if a length, named by its knob, is beyond the positions of the model in `folder`."""
    limit = positions(folder)
    for knob, length in lengths.items():
        if limit is not None and length > limit:
            raise InputError(f"{knob}={length} must not exceed the model's {KEY}={limit} ({folder / 'config.json'})")
