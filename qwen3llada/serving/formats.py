"""The formats that a checkpoint can be exported to. A new one is an entry of `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3llada.serving import sdar


@dataclass(frozen=True, kw_only=True)
class Format:
    """What an engine expects of a folder beside Qwen3's tensors and the tokenizer.

    check(config, folder): raises InputError, naming the first thing about the model that the engines do not compute.
    config(config, eos, dtype): the values of config.json.
    code: files that are put beside it, for `trust_remote_code`.
    commands(served, block_length): SERVING.md, how each engine is started on the folder.
    mask_token_id: the id that the engines take for the mask.
    """

    check: Callable[[Any, Path], None]
    config: Callable[[Any, int, str], Mapping[str, Any]]
    code: tuple[Path, ...]
    commands: Callable[[str, int], str]
    mask_token_id: int


FORMATS: dict[str, Format] = {
    "sdar": Format(
        check=sdar.check_exportable,
        config=sdar.config_values,
        code=(Path(__file__).with_name("configuration_sdar.py"),),
        commands=sdar.commands,
        mask_token_id=sdar.MASK_TOKEN_ID,
    ),
}
