"""A page that plays how answers were denoised. Self-contained: runs in any browser without a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from qwen3llada.artifacts import new_file
from qwen3llada.sampling.dialogue.text_model import Trace

TEMPLATES = Path(__file__).parent


def page_templates(*folders: Path) -> Environment:
    """The Jinja environment for pages. Templates in `folders` may import the player's; inserted values are escaped."""
    return Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=select_autoescape(["html.jinja"], default_for_string=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_trace_page(path: Path, traces: Sequence[Trace], settings: Mapping[str, Any]) -> None:
    """Write a page that plays the denoising of answers, step by step.

    Args:
        settings: decoding parameters (name -> value), shown on the page.

    Raises: OSError if it cannot be written.
    """
    page = page_templates().get_template("trace.html.jinja").render(traces=traces, settings=settings)
    with new_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
