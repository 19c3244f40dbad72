"""Loss curves under several precisions and optimisers, with the same model, text, order and noise.

    python -m bench.precision data/tokenized/pretrain out/qwen3llada-converted --out curves.json
    python -m bench.precision --plot curves.json [MORE.json …] --to curves.png

The first two arguments are tokenized text, and the model folder whose tokenizer made it. The trained model has random
weights, that vocabulary, and the layers of `--shapes`: "0.6b" as Qwen3-0.6B, "tiny" for a CPU.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bench.fp8 import in_8_bits
from bench.random_run import DEVICE, QWEN3_0_6B, TINY, clean
from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
from qwen3llada.objective.objective import MaskedDiffusionObjective
from qwen3llada.training.loop import evaluate, training_steps
from qwen3llada.training.params import PretrainParams
from qwen3llada.training.start.start import start
from qwen3llada.training.stopping import StopRequest

LAST = 50  # steps for the reported mean loss

# Differences from fp32 weights with bf16 computation and AdamW.
VARIANTS: dict[str, dict[str, Any]] = {
    "all in fp32": {"bf16": False},
    "fp32 weights": {},
    "fp32 weights, another seed": {},
    "fp32 weights, wide residuals": {},  # residual stream in fp32, as autocast alone leaves it
    "fp32 weights, fp8 products": {},  # of the layers (bench/fp8.py)
    "bf16 weights": {"param_dtype": "bfloat16"},
    "adamw8bit": {"optim": {"name": "adamw8bit"}},
    "lion8bit": {"optim": {"name": "lion8bit"}},
}
LION = {"lr": 1 / 5, "weight_decay": 5}  # factors on AdamW's values (Chen et al., arXiv 2302.06675, section 5: 3 to 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("tokenizer", type=Path, nargs="?")
    parser.add_argument("--shapes", choices=["0.6b", "tiny"], default="0.6b" if DEVICE.type == "cuda" else "tiny")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), help=", ".join(VARIANTS))
    parser.add_argument("--lr", type=float, nargs="*", default=[3e-4, 1e-5])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, nargs="+")
    parser.add_argument("--to", type=Path)
    args = parser.parse_args()
    if args.plot:
        plot([curve for path in args.plot for curve in json.loads(path.read_text())], args.to)
        return
    curves = []
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), args.tokenizer, QWEN3_0_6B if args.shapes == "0.6b" else TINY)
        for lr in args.lr:
            for name in args.only:
                curve = train(args, Path(folder), name, lr)
                curves.append(curve)
                last = statistics.mean(curve["losses"][-LAST:])
                print(
                    f"lr {lr:g}  {name:30} last {LAST} steps {last:.4f}, held out {curve['held_out']:.4f}", flush=True
                )
                if args.out:
                    args.out.write_text(json.dumps(curves))
                clean()


def write_model(folder: Path, tokenizer: Path, shapes: dict[str, Any]) -> None:
    from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    given = load_tokenizer(tokenizer)
    torch.manual_seed(0)
    vocabulary = -(-len(given) // 64) * 64
    config = Qwen3LLadaConfig(
        **shapes | {"vocab_size": vocabulary}, tie_word_embeddings=True, mask_token_id=given.mask_token_id
    )
    Qwen3LLadaForMaskedLM(config).save_pretrained(folder / "model")
    given.save_pretrained(folder / "model")


def train(args: argparse.Namespace, folder: Path, name: str, lr: float) -> dict[str, Any]:
    """The losses of all steps, and the final held-out loss."""
    changes = VARIANTS[name]
    optim = {"lr": lr, "warmup_ratio": 0.05, "scheduler": "cosine"} | changes.get("optim", {})
    if name == "lion8bit":
        optim |= {"lr": lr * LION["lr"], "weight_decay": 0.1 * LION["weight_decay"]}
    params = PretrainParams.model_validate(
        {
            "model": folder / "model",
            "data": args.data,
            "output_dir": folder / "work",
            "reports": folder / "reports",
            "max_steps": args.steps,
            "micro_batch_size": args.rows,
            "pad_to_multiple_of": 64,
            "resume_from": "",
            "bf16": True,
            "deterministic": False,
            **changes,
            "optim": optim,
        }
    )
    seed = 1 if "another seed" in name else 0
    with wide_residuals() if "wide" in name else in_8_bits() if "fp8" in name else nullcontext():
        run, stop = start(params, seed=seed, template="plain"), StopRequest()
        results = list(training_steps(run, stop))
        held_out, _ = evaluate(run)
    return {"name": name, "lr": lr, "losses": [result.read().loss for result in results], "held_out": held_out}


@contextmanager
def wide_residuals() -> Iterator[None]:
    """Keep embeddings in float32, like the weights, so that the residual stream is float32 as well."""
    with patch.object(MaskedDiffusionObjective, "_embedded", lambda self, x: self.model.get_input_embeddings()(x)):
        yield


def plot(curves: list[dict[str, Any]], to: Path) -> None:
    """Plot losses over steps, as means of 20, in a panel per learning rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rates = sorted({curve["lr"] for curve in curves}, reverse=True)
    figure, axes = pyplot.subplots(1, len(rates), figsize=(6 * len(rates), 4), squeeze=False)
    for lr, axis in zip(rates, axes[0], strict=True):
        for curve in (c for c in curves if c["lr"] == lr):
            smooth = torch.tensor(curve["losses"]).unfold(0, 20, 1).mean(1)
            axis.plot(range(20, 20 + len(smooth)), smooth, label=f"{curve['name']}: {curve['held_out']:.3f}", lw=1)
        axis.set(xlabel="step", ylabel="loss, mean of 20 steps", title=f"learning rate {lr:g}")
        axis.legend(title="held-out loss at the end", fontsize=8)
    figure.tight_layout()
    figure.savefig(to, dpi=110)


if __name__ == "__main__":
    main()
