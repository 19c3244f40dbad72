"""The page about post-training, `rollouts.html` in its reports: curves, and rollouts with rewards and denoising."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import new_file, read_json, read_jsonl
from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
from qwen3llada.modeling.loading import check_is_ours, files_blamed
from qwen3llada.report.charts import Point, line_chart, number
from qwen3llada.report.data import content_blamed, read_curves
from qwen3llada.sampling.dialogue.text_model import Answer, TextModel, Trace
from qwen3llada.sampling.trace.page import page_templates
from qwen3llada.sampling.trace.recording import Decided

PAGE = "rollouts.html"
SHOWN, PLAYED = 64, 6  # rollouts of the newest batch in the table, and prompts of which one is played


def write_rollouts_page(reports: Path, model: Path, method: str) -> Path:
    """Write the page from the reports of a finished run. Returns its path.

    Args:
        model: folder of the trained model. Its tokenizer and config are read, not its weights. method: shown.

    Raises: FileNotFoundError or InputError in one line, naming a file that the stage should have written.
    """
    path = reports / "rollouts.jsonl"
    rollouts = list(read_jsonl(path))
    text = read_text_model(model)
    with content_blamed(path):
        traces = [trace_of(row, text) for row in [r for r in rollouts if r["sample"] == 0][:PLAYED]]
        context = {
            "summary": read_json(reports / "summary.json"),
            "method": method,
            "charts": reward_charts(read_curves(reports)),
            "rollouts": rollouts[:SHOWN],
            "made": len(rollouts),
            "traces": traces,
            "heldout": list(read_jsonl(reports / "heldout.jsonl"))[:SHOWN],
        }
    pages = page_templates(Path(__file__).parent)
    pages.filters["number"] = number
    page = pages.get_template(f"{PAGE}.jinja").render(context)
    with new_file(reports / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return reports / PAGE


@dataclass(frozen=True)
class ConfigAlone:
    """Stands for a model where only its config is read."""

    config: Any


def read_text_model(folder: Path) -> TextModel:
    """Tokenizer and config of the model in `folder`, to show its tokens as text. Without weights it cannot answer.

    Raises: InputError if there is no model or no tokenizer.
    """
    from qwen3llada.modeling.configuration_qwen3llada import Qwen3LLadaConfig

    check_is_ours(folder)
    with files_blamed(folder):
        config = Qwen3LLadaConfig.from_pretrained(folder, trust_remote_code=False)
    return TextModel(ConfigAlone(config), load_tokenizer(folder))


def trace_of(row: Mapping[str, Any], text: TextModel) -> Trace:
    """A rollout as the player takes it."""
    decided = [
        Decided(token=token, step=step, confidence=confidence)
        for token, step, confidence in zip(row["tokens"], row["steps"], row["confidence"], strict=True)
    ]
    steps = max(row["steps"], default=0)
    answer = Answer(
        prompt=f"{row['prompt_text']}\nreward {row['reward']:.4g}",
        answer=row["answer"],
        prompt_tokens=len(row["prompt_tokens"]),
        answer_tokens=row["answer_tokens"],
        forward_passes=steps,
        seconds=0.0,
        backend="",
    )
    return Trace(
        answer=answer, tokens=list(zip(text.pieces(row["tokens"]), decided, strict=True)), steps=steps, earlier={}
    )


def reward_charts(curves: Mapping[str, Sequence[Point]]) -> dict[str, str]:
    """Charts of a run on rewards by heading, without empty ones."""

    def of(label: str, **names: str) -> str:
        chosen = {shown.replace("_", " "): curves.get(name, []) for shown, name in names.items()}
        return line_chart(chosen, x_label="step", y_label=label, zero=True)

    charts = {
        "Reward": of("reward", rollouts="train/reward", held_out="eval/reward"),
        "Spread of the reward": of("standard deviation", all_rollouts="train/reward_spread"),
        "Groups of equal rewards": of("share", groups="train/equal_groups"),
        "Entropy": of("nats", entropy="train/entropy"),
        "Divergence": of("nats", rollouts="train/kl_to_rollouts", first_model="train/kl_to_reference"),
        "Clipped tokens": of("share", clipped="train/clip_fraction"),
        "Tokens of an answer": of("tokens", rollouts="train/answer_length", held_out="eval/answer_length"),
        "Tokens per forward pass": of("tokens", rollouts="train/tokens_per_pass", held_out="eval/tokens_per_pass"),
    }
    return {heading: chart for heading, chart in charts.items() if chart}


def read_post_training(folder: Path) -> dict[str, Any] | None:
    """What the report of the pipeline shows of post-training; None where there is no finished run."""
    if not (folder / PAGE).is_file() or not (folder / "summary.json").is_file():
        return None
    return {
        "summary": read_json(folder / "summary.json"),
        "charts": dict(list(reward_charts(read_curves(folder)).items())[:1]),
        "page": f"{folder.name}/{PAGE}",
    }
