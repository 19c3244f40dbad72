"""Likelihood bounds of both models on held-out text and answers, and quality against speed: reports/evaluate.json.

reports/evaluate/ has the details, tables for plots, and the speeds on this machine. Several GPUs share the work:
`accelerate launch --config_file launch/ddp.yaml -m stages.evaluate --force`; the numbers are the same.
"""

from pathlib import Path

from qwen3llada.params import Params, run_as_stage

REPORTS = Path("reports")


def main(params: Params) -> None:
    from qwen3llada.corpus.fetch.download import fetch_model
    from qwen3llada.evaluation.held_out import evaluate_models

    metrics = evaluate_models(
        {"pretrain": params.pretrain.dst, "sft": params.sft.dst},
        {"text": params.pretrain.data, "answers": params.sft.data},
        fetch_model(params.convert.src) if params.evaluate.autoregressive else None,
        params.evaluate,
        params.sample,
        REPORTS,
    )
    for name, numbers in metrics.items():
        values = {key: value for key, value in numbers.items() if not key.endswith("_error")}
        errors = {key: numbers[f"{key}_error"] for key in values}
        said = (
            f"{key} {value:.4f}" + ("" if errors[key] is None else f" ± {errors[key]:.4f}")
            for key, value in values.items()
        )
        print(f"{name}: {', '.join(said)} nats per token")


if __name__ == "__main__":
    run_as_stage(main, own="evaluate", shared=("sample", "convert", "pretrain", "sft"))
