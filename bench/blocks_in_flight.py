"""Would it pay to begin a block before the one before it is finished? By plain loops, under `block_causal`.

    python -m bench.blocks_in_flight [--model out/qwen3llada-sft] [--data data/tokenized/sft]

A block begins when `begin` tokens of the answer are in the block before it. At most `--most` blocks are open at once.
In training a block saw finished blocks before it, and never masks, so the result is approximate. Every pass computes
the whole canvas: passes are counted, not seconds.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qwen3llada.modeling.attention import attention_bias
from qwen3llada.sampling.dialogue.exact_match import heldout_prompts
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.sampling.params import SampleParams


class Rule(NamedTuple):
    """When a block begins, and which of its tokens a pass commits."""

    name: str
    begin: int | None  # tokens of the block before; None: all
    commits: int = 1  # the surest so many
    threshold: float | None = None  # instead all that are so sure; in the first open block at least one


RULES = (
    *(Rule(f"one after the other, {count} a pass", None, count) for count in (1, 2, 4)),
    *(Rule(f"the next after {begin}, 1 a pass", begin) for begin in (3, 2, 1, 0)),
    Rule("the next after 2, 2 a pass", 2, 2),
    Rule("one after the other, threshold 0.9", None, threshold=0.9),
    *(Rule(f"the next after {begin}, threshold 0.9", begin, threshold=0.9) for begin in (2, 1, 0)),
)


@torch.no_grad()
def decode(text: TextModel, prompt: Sequence[int], rule: Rule, gen_length: int, most: int) -> tuple[list[int], int]:
    """The answer up to its end, and the passes that it took."""
    width, mask, start = text.model.config.block_length, text.model.config.mask_token_id, len(prompt)
    length, passes = -(-(start + gen_length) // width) * width, 0
    canvas = torch.tensor([[*prompt, *[mask] * (length - start)]], device=text.model.device)
    lengths = torch.tensor([start], device=canvas.device)
    bias = attention_bias("block_causal", lengths, length, width)
    while True:
        masked = (canvas[0] == mask).unflatten(0, (-1, width)).sum(1).tolist()
        finished = next((block for block, count in enumerate(masked) if count), len(masked)) * width
        answer = canvas[0, start : max(finished, start)].tolist()
        ends = [place for place, token in enumerate(answer) if token in text.ends]
        if ends or finished == length:
            return answer[: ends[0]] if ends else answer, passes
        logits = text.model(canvas, attention_mask=bias).logits[0]
        logits[:, mask] = -torch.inf
        sure, token = logits.softmax(-1).max(-1)
        passes += 1
        for number, block in enumerate(opened(masked, start, rule, width, most)):
            columns = chosen(sure, canvas[0] == mask, block * width, width, rule, first=number == 0)
            canvas[0, columns] = token[columns]


def opened(masked: list[int], start: int, rule: Rule, width: int, most: int) -> list[int]:
    """The blocks that a pass works on: the first that has masks, and those that may begin after it.

    start: length of the prompt, whose tokens in the first block do not count.
    """
    first = next(block for block, count in enumerate(masked) if count)
    blocks = [first]
    while rule.begin is not None and len(blocks) < most and blocks[-1] + 1 < len(masked):
        own = min(width, (blocks[-1] + 1) * width - start)
        if own - masked[blocks[-1]] < rule.begin:
            break
        blocks.append(blocks[-1] + 1)
    return blocks


def chosen(sure: Tensor, masked: Tensor, start: int, width: int, rule: Rule, *, first: bool) -> list[int]:
    """The columns of a block that are committed."""
    columns = [column for column in range(start, start + width) if masked[column]]
    columns.sort(key=lambda column: -float(sure[column]))
    if rule.threshold is None:
        return columns[: rule.commits]
    return [column for column in columns if sure[column] >= rule.threshold] or columns[: int(first)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("out/qwen3llada-sft"))
    parser.add_argument("--data", type=Path, default=Path("data/tokenized/sft"))
    parser.add_argument("--samples", type=int, default=0, help="held-out prompts; 0: all")
    parser.add_argument("--gen-length", type=int, default=32)
    parser.add_argument("--most", type=int, default=4, help="blocks that are open at once")
    args = parser.parse_args()
    text = TextModel.load(args.model)
    params = SampleParams.model_validate({"samples": args.samples})
    prompts, references = heldout_prompts(text, args.data / "heldout", params)
    print("| | exact match | passes | tokens a pass |\n|---|---|---|---|")
    for rule in RULES:
        print(row(text, prompts, references, rule, args), flush=True)


def row(text: TextModel, prompts: list[list[int]], references: list[str], rule: Rule, args: Any) -> str:
    answers = [decode(text, prompt, rule, args.gen_length, args.most) for prompt in prompts]
    right = sum(text.decode(found) == reference for (found, _), reference in zip(answers, references, strict=True))
    tokens, passes = (sum(values) for values in zip(*((len(found) + 1, used) for found, used in answers), strict=True))
    return f"| {rule.name} | {right / len(prompts):.3f} | {passes} | {tokens / passes:.2f} |"


if __name__ == "__main__":
    main()
