"""The picture of masking and unmasking in README.md: what it shows, and how it is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXTS = Path("data/tokenized/pretrain/train")
TEXT = "A horse sleeps in a stable."
QUESTION = "What is Bruno's animal?"
TOKENS = 8  # of the text and of the answer, their ends included
STEPS = 12  # 4 for each of the 3 blocks that the answer touches: a token a pass
THEMES = {
    "light": {"ink": "#1f2328", "faint": "#59636e", "mask": "#c5cdd6", "new": "#ffd8a8", "line": "#d1d9e0"},
    "dark": {"ink": "#f0f6fc", "faint": "#9198a1", "mask": "#4a525c", "new": "#8a4b08", "line": "#3d444d"},
}
WIDTH, ROW, TOP = 8.6, 0.285, 0.4  # inches: of the picture, of a row, of the headings


@dataclass(frozen=True, kw_only=True)
class Row:
    """One state of a text: its pieces, None where it is masked, and which of them are new in this row."""

    label: str
    pieces: tuple[str | None, ...]
    new: frozenset[int] = frozenset()


def corrupted_rows(model: Path) -> list[Row]:
    """A training text under the noise that training draws, at rising noise levels."""
    import torch

    from qwen3llada.corpus.tokens.mapped_tokens import load_tokens
    from qwen3llada.diffusion.corruption import add_noise
    from qwen3llada.diffusion.params import NoiseParams
    from qwen3llada.errors import InputError
    from qwen3llada.sampling.dialogue.text_model import TextModel

    text, samples = TextModel.load(model), load_tokens(TEXTS)
    known = (samples[i].tokens for i in range(len(samples)) if samples.lengths[i] == TOKENS)
    tokens = next((sample for sample in known if text.decode(sample) == TEXT), None)
    if tokens is None:
        raise InputError(f"{TEXTS}: must hold the text {TEXT!r} of {TOKENS} tokens, as the built-in default does")
    pieces = text.pieces(tokens.tolist())
    levels = torch.arange(TOKENS + 1) / TOKENS
    noised = add_noise(
        torch.tensor(tokens).expand(len(levels), -1).clone(),
        NoiseParams(eps=1e-9),
        mask_token_id=text.model.config.mask_token_id,
        indices=torch.arange(len(levels)),
        levels=levels,
        seed=0,
        epoch=0,
    )
    return [
        Row(
            label=f"t = {level:g}",
            pieces=tuple(None if masked else piece for piece, masked in zip(pieces, row, strict=True)),
        )
        for level, row in zip(levels.tolist(), noised.masked.tolist(), strict=True)
    ]


def decoded_rows(model: Path) -> list[Row]:
    """The answer to `QUESTION` before the first forward pass and after each."""
    from qwen3llada.corpus.conversations.records import Exchange
    from qwen3llada.sampling.dialogue.text_model import TextModel, Trace
    from qwen3llada.sampling.sampler import SampleParams

    text, traces = TextModel.load(model), list[Trace]()
    params = SampleParams(steps=STEPS, gen_length=TOKENS)
    list(text.answers(text.encode([Exchange(QUESTION, "")]), params, seed=0, on_trace=traces.append))
    (trace,) = traces
    return [
        Row(
            label=f"pass {number}" if number else "start",
            pieces=tuple(piece if decided.step <= number else None for piece, decided in trace.tokens),
            new=frozenset(i for i, (_, decided) in enumerate(trace.tokens) if decided.step == number),
        )
        for number in range(trace.steps + 1)
    ]


def draw(training: Sequence[Row], sampling: Sequence[Row], theme: str, path: Path) -> None:
    """Write both panels side by side as an SVG, on a transparent ground, in the colours of `theme`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colours = THEMES[theme]
    height = TOP + ROW * max(len(training), len(sampling)) + 0.05
    # Text as outlines looks the same in every browser; the salt keeps the file the same in every run.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "qwen3llada", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(WIDTH, height), facecolor="none")
        for panel, (title, rows) in enumerate(
            (
                ("Training masks at a random noise level t", training),
                (f"Sampling answers “{QUESTION}”", sampling),
            )
        ):
            axes = figure.add_axes((panel * 0.5, 0, 0.5, 1))
            axes.set(xlim=(0, WIDTH / 2), ylim=(height, 0))
            axes.axis("off")
            axes.text(0.06, 0.18, title, color=colours["ink"], fontsize=10, fontweight="bold", va="center")
            for number, row in enumerate(rows):
                _draw_row(axes, row, TOP + ROW * number, colours)
        figure.savefig(path, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_row(axes: Any, row: Row, top: float, colours: dict[str, str]) -> None:
    from matplotlib.patches import FancyBboxPatch

    left = 0.66
    cell = (WIDTH / 2 - left - 0.1) / len(row.pieces)
    axes.text(left - 0.08, top + ROW / 2, row.label, color=colours["faint"], fontsize=8, ha="right", va="center")
    for column, piece in enumerate(row.pieces):
        fill = colours["mask"] if piece is None else colours["new"] if column in row.new else "none"
        box = FancyBboxPatch(
            (left + column * cell + 0.02, top + 0.03),
            cell - 0.04,
            ROW - 0.06,
            boxstyle="round,pad=0,rounding_size=0.04",
            facecolor=fill,
            edgecolor=colours["line"],
            linewidth=0.6,
        )
        axes.add_patch(box)
        if piece is not None:
            where = (left + (column + 0.5) * cell, top + ROW / 2)
            axes.text(*where, piece.strip(), color=colours["ink"], fontsize=8, ha="center", va="center")
