"""Loss on held-out data, of the loss in use and of all others: reports/eval_loss.json."""

from pathlib import Path

from qwen3llada.artifacts import write_json
from qwen3llada.params import Params, run

REPORT = Path("reports/eval_loss.json")


def main(params: Params) -> None:
    from qwen3llada.evaluation.eval_loss import evaluate_model

    report = {
        name: evaluate_model(section.dst, section.data, section, params.eval_loss, seed=params.seed)
        for name, section in (("pretrain", params.pretrain), ("sft", params.sft))
    }
    write_json(REPORT, report)
    for name, losses in report.items():
        print(f"{name}: held-out {losses['loss_impl']} loss {losses['loss']:.4f} over {losses['samples']} samples")


if __name__ == "__main__":
    run(main, own="eval_loss", shared=("seed", "pretrain", "sft"))
