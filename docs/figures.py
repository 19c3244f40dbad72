"""Tables, frames and pictures of the documentation that no stage prints: `python -m docs.figures NAME`.

All but `unmasking`, which draws files, print to stdout what `outputs.py` puts into a page.
"""

import inspect
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from qwen3llada.errors import InputError

REPORTS = Path("reports")
MODEL = Path("out/qwen3llada-sft")
MODELS = {
    "source": "Qwen3 that conversion started from (random weights, left to right)",
    "pretrain": "after pretraining",
    "sft": "after fine-tuning",
}
KNOBS = {
    "as it is": {},
    "`unmask: threshold`": {"unmask": "threshold"},
    "`unmask: factor`": {"unmask": "factor"},
    "`unmask: entropy_bound`": {"unmask": "entropy_bound"},
    "`steps: 18`": {"steps": 18},
    "`steps: 9`": {"steps": 9},
    "`edit_threshold: 0.9`": {"edit_threshold": 0.9},
    "`edit_threshold: 0.5`": {"edit_threshold": 0.5},
    "`steps: 18`, `remask: 1`": {"steps": 18, "remask": 1},
    "`cfg_scale: 1`": {"cfg_scale": 1.0},
    "`remasking: random`": {"remasking": "random"},
    "`remasking: entropy`": {"remasking": "entropy"},
}


def results() -> None:
    """The held-out figures of the last run."""
    sample, losses, analyze = (
        json.loads((REPORTS / f"{name}.json").read_text()) for name in ("sample", "eval_loss", "analyze")
    )
    right = round(sample["exact_match"] * sample["samples"])
    print("| | |")
    print("|---|---|")
    asked = f"{right} of {sample['samples']} ({sample['exact_match']:.3f})"
    print(f"| held-out questions answered word for word (`reports/sample.json`) | {asked} |")
    pretrained, tuned = (f"{losses[stage]['guidelines']:.3f}" for stage in ("pretrain", "sft"))
    print(f"| held-out loss, pretraining (guidelines, `reports/eval_loss.json`) | {pretrained} |")
    print(f"| held-out loss, fine-tuning | {tuned} |")
    good = sum(analyze["summary"].get(status, 0) for status in ("identical", "grown"))
    print(f"| tensors identical after conversion (`reports/analyze.json`) | {good} of {len(analyze['tensors'])} |")


def bounds() -> None:
    """The likelihoods of the last run: nats per token of held-out texts and answers, by model."""
    evaluated = json.loads((REPORTS / "evaluate.json").read_text())
    print("| model | texts | answers, given their prompts |")
    print("|---|---|---|")
    for name, shown in MODELS.items():
        found, bound = evaluated[name], "nll" if name == "source" else "nelbo"
        cells = (
            f"{found[f'{kind}_{bound}']:.3f} ± {found[f'{kind}_{bound}_error']:.3f}" for kind in ("text", "answers")
        )
        print(f"| {shown} | {' | '.join(cells)} |")


def quality() -> None:
    """Quality against speed in the last run: a row for each setting of the sampler."""
    details = json.loads((REPORTS / "evaluate/details.json").read_text())
    print("| unmask | setting | exact match | nats per token of the answers | tokens per forward pass |")
    print("|---|---|---|---|---|")
    for row in details["quality"]:
        nats = f"{row['answer_nll']:.3f} ± {row['answer_nll_error']:.3f}"
        print(
            f"| {row['unmask']} | {row['setting']} | {row['exact_match']:.3f} | {nats} | {row['tokens_per_pass']:.2f} |"
        )


def knobs() -> None:
    """What each knob does to two answers."""
    from qwen3llada.corpus.conversations.records import Exchange
    from qwen3llada.sampling.dialogue.text_model import TextModel
    from qwen3llada.sampling.sampler import SampleParams

    text = TextModel.load(MODEL)
    asked = [
        Exchange("What is Bruno's animal?", ""),
        Exchange("Where does she live?", "", None, (("What does Vera play?", "Vera plays the horn."),)),
    ]
    print("| | What is Bruno's animal? | (What does Vera play?) Where does she live? | passes |")
    print("|---|---|---|---|")
    for name, changes in KNOBS.items():
        params = SampleParams.model_validate({"steps": 32, "gen_length": 32} | changes)
        answers = list(text.answers(text.encode(asked), params, seed=0))
        print(f"| {name} | {' | '.join(answer.answer for answer in answers)} | {answers[0].forward_passes} |")


def chat_frame(question: str, steps: str) -> None:
    """What the chat draws after so many steps. Raises InputError where `steps` is no number."""
    if not steps.isdecimal():
        raise InputError(f"chat_frame: {steps=} must be a number of steps")
    from rich.console import Console

    from qwen3llada.corpus.conversations.records import Exchange
    from qwen3llada.sampling.dialogue.terminal import View
    from qwen3llada.sampling.dialogue.text_model import TextModel
    from qwen3llada.sampling.sampler import SampleParams, stream

    text = TextModel.load(MODEL)
    prompts = text.encode([Exchange(question, "")])
    view = View(text, len(prompts[0]), Console(file=io.StringIO(), width=78, height=24))
    for step in stream(text.model, prompts, SampleParams(steps=32, gen_length=32), eos_token_ids=text.ends):
        if step.index + 1 == int(steps):
            print(f"> {question}\n{view.frame(step).plain}")


def block_mask() -> None:
    """Who sees whom under block_causal in training: a prompt of 6 tokens, an answer of 6, blocks of 4."""
    import torch

    from qwen3llada.modeling.masks import Columns, dense_mask

    clean, corrupted = "ppppppaaaaaa", "ppaaaaaa"  # the corrupted copy begins with the block that the answer begins in
    numbers = [index // 4 for index in range(len(clean))]
    blocks = torch.tensor([numbers[-len(corrupted) :] + numbers])
    mask = dense_mask("block_causal", Columns(blocks=blocks, corrupted=len(corrupted)), 0)[0, 0]

    def cells(text: str) -> str:
        parts = (text[: len(corrupted)], text[len(corrupted) :])
        return "   ".join(" ".join(part[i : i + 4] for i in range(0, len(part), 4)) for part in parts)

    print(f"{'a row sees:':21}{'corrupted':12}clean\n{'':21}{cells(corrupted + clean)}")
    for start in range(0, len(mask), 4):  # the rows of a block are alike
        copy = "corrupted" if start < len(corrupted) else "clean"
        seen = "".join("■" if value else "·" for value in mask[start].tolist())
        print(f"{copy:10} block {int(blocks[0, start])}   {cells(seen)}")


def unmasking() -> None:
    """Draw docs/images/unmasking-{light,dark}.svg: a text that training masks, and an answer that sampling unmasks."""
    from docs.masking_picture import THEMES, corrupted_rows, decoded_rows, draw

    training, sampling = corrupted_rows(MODEL), decoded_rows(MODEL)
    for theme in THEMES:
        path = Path(f"docs/images/unmasking-{theme}.svg")
        draw(training, sampling, theme, path)
        print(path)


FIGURES: dict[str, Callable[..., None]] = {
    figure.__name__: figure for figure in (results, bounds, quality, knobs, chat_frame, block_mask, unmasking)
}


def main(arguments: Sequence[str]) -> int:
    """Make the figure that the command line names. An error is one line on stderr: status 2 if the command is wrong."""
    name, *given = arguments or [""]
    if name not in FIGURES:
        what = f"unknown figure {name!r}" if name else "no figure named"
        print(f"error: {what}: python -m docs.figures NAME; allowed: {', '.join(FIGURES)}", file=sys.stderr)
        return 2
    wanted = list(inspect.signature(FIGURES[name]).parameters)
    if len(given) != len(wanted):
        usage = " ".join(["python -m docs.figures", name, *map(str.upper, wanted)])
        print(f"error: {name}: {len(given)} arguments given, {len(wanted)} needed: {usage}", file=sys.stderr)
        return 2
    try:
        FIGURES[name](*given)
    except FileNotFoundError as error:
        print(f"error: {error.filename}: no such file; make repro writes it", file=sys.stderr)
        return 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
