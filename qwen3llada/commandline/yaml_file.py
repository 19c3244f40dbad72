"""Parameter files: reading YAML, and changing values in a file without changing its layout."""

from copy import deepcopy
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from qwen3llada.artifacts import new_file
from qwen3llada.commandline.messages import ParamsError, cut


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in `path`, read as YAML 1.2: DVC writes `1e-05`, which YAML 1.1 reads as a string.

    Raises: `ParamsError` if the file is missing, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ParamsError(f"{path}: no such parameter file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: cannot be read: {error}") from error
    try:
        tree = deepcopy(_parsed(text))
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or number that Python lacks
        raise ParamsError(f"{path}: not valid YAML: {cut(' '.join(str(error).split()), 300)}") from error
    if not isinstance(tree, dict):
        raise ParamsError(f"{path}: must hold a mapping of sections, given {type(tree).__name__}")
    return tree


@lru_cache(maxsize=16)
def _parsed(text: str) -> Any:
    """Remembered, because each stage reads params.yaml twice, and a reading takes 50 ms."""
    return YAML(typ="safe", pure=True).load(text)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `over`. Mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def put_values(path: Path, over: dict[str, Any]) -> None:
    """Write the leaves of `over` to the YAML file `path`. Comments, order and other lines stay the same."""
    yaml = YAML()  # default settings, as in `dvc exp run -S`, so that neither tool reformats the other's lines
    tree = yaml.load(path.read_text(encoding="utf-8"))
    _put(tree, over)
    text = StringIO()
    yaml.dump(tree, text)
    with new_file(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _put(tree: dict[str, Any], over: dict[str, Any]) -> None:
    """Put the leaves of `over` into `tree`. Unchanged values keep their notation, such as 1.0e-8."""
    for key, value in over.items():
        there = tree.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            _put(there, value)
        elif there != value or isinstance(there, bool) != isinstance(value, bool):
            _forget_comments_before_value(tree, key)
            tree[key] = value


def _forget_comments_before_value(tree: Any, key: str) -> None:
    """Remove the note that there are no comment lines between `key` and its value.

    ruamel.yaml makes it where a list on lines of its own follows a comment on the line of its key. If `[]` takes the
    place of that list, the note makes ruamel.yaml join later lines, and the file is no longer YAML.
    """
    comments = tree.ca.items.get(key, ())  # before key, after key, after value, [before value]
    if len(comments) == 4 and comments[3] == []:
        comments[3] = None
