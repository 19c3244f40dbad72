"""Tables and frames of the documentation that no stage prints: `python -m docs.figures NAME`, see `outputs.py`."""

import io
import json
import sys
from pathlib import Path

REPORTS = Path("reports")
KNOBS = {
    "as it is": {},
    "`unmask: threshold`": {"unmask": "threshold"},
    "`steps: 16`": {"steps": 16},
    "`steps: 8`": {"steps": 8},
    "`steps: 2`": {"steps": 2},
    "`cache: dual`": {"cache": "dual"},
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


def knobs() -> None:
    """What each knob does to two answers."""
    from qwen3llada.corpus.conversations.records import Exchange
    from qwen3llada.sampling.dialogue.text_model import TextModel
    from qwen3llada.sampling.sampler import SampleParams

    text = TextModel.load(Path("out/qwen3llada-sft"))
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


def chat_frame(question: str, number: int) -> None:
    """What the chat draws after so many steps."""
    from rich.console import Console

    from qwen3llada.corpus.conversations.records import Exchange
    from qwen3llada.sampling.dialogue.terminal import View
    from qwen3llada.sampling.dialogue.text_model import TextModel
    from qwen3llada.sampling.sampler import SampleParams, stream

    text = TextModel.load(Path("out/qwen3llada-sft"))
    prompts = text.encode([Exchange(question, "")])
    view = View(text, len(prompts[0]), Console(file=io.StringIO(), width=78, height=24))
    for step in stream(text.model, prompts, SampleParams(steps=32, gen_length=32), eos_token_ids=text.ends):
        if step.index + 1 == number:
            print(f"> {question}\n{view.frame(step).plain}")


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name == "chat_frame":
        chat_frame(arguments[0], int(arguments[1]))
    else:
        {"results": results, "knobs": knobs}[name]()
