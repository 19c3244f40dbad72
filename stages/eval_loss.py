"""Loss on held-out data, of the loss in use and of all others: reports/eval_loss.json, for `dvc metrics`.

reports/eval_loss_details.json has the losses by noise level, and what was measured.
"""

from pathlib import Path

from qwen3llada.artifacts import write_json
from qwen3llada.params import Params, run_as_stage

REPORT = Path("reports/eval_loss.json")
DETAILS = Path("reports/eval_loss_details.json")


def main(params: Params) -> None:
    from qwen3llada.evaluation.eval_loss import DETAIL_KEYS, evaluate_model

    report = {
        name: evaluate_model(section.dst, section.data, section, params.eval_loss, seed=params.seed)
        for name, section in (("pretrain", params.pretrain), ("sft", params.sft))
    }
    losses_alone = {name: {k: v for k, v in found.items() if k not in DETAIL_KEYS} for name, found in report.items()}
    details = {name: {k: v for k, v in found.items() if k in DETAIL_KEYS} for name, found in report.items()}
    write_json(REPORT, losses_alone)
    write_json(DETAILS, details)
    for name, losses in report.items():
        print(f"{name}: held-out {losses['loss_impl']} loss {losses['loss']:.4f} over {losses['samples']} samples")


if __name__ == "__main__":
    run_as_stage(main, own="eval_loss", shared=("seed", "pretrain", "sft"))
