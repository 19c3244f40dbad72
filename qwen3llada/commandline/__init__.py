"""From a YAML file and a command line to a validated model, with one-line errors. Independent of the sections."""

from qwen3llada.commandline.flags import parse_flags, refuse_unread
from qwen3llada.commandline.messages import ParamsError
from qwen3llada.commandline.models import parse_environment, validated, with_default
from qwen3llada.commandline.yaml_file import merge, put_values, read_yaml

__all__ = [
    "ParamsError",
    "merge",
    "parse_environment",
    "parse_flags",
    "put_values",
    "read_yaml",
    "refuse_unread",
    "validated",
    "with_default",
]
