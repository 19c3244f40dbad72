"""Post-train the fine-tuned model on rewards of its own answers (docs/rl.md).

Not a part of `dvc repro`: `dvc repro post_training/dvc.yaml` runs it. Several GPUs share the work:
`accelerate launch --config_file launch/ddp.yaml -m stages.rl`.
"""

from qwen3llada.params import Params, run_as_stage


def main(params: Params) -> None:
    from accelerate import PartialState

    from qwen3llada.post_training.task import post_train
    from qwen3llada.report.rollouts_page import write_rollouts_page

    summary = post_train(params.rl, seed=params.seed, template=params.sft_data.template)
    if not PartialState().is_main_process:  # the main process writes the summary that the page reads, and the page
        return
    write_rollouts_page(params.rl.reports, params.rl.dst, params.rl.method)
    before, after = summary["eval_reward_before"], summary["eval_reward"]
    print(f"held-out reward {before:.3f} before, {after:.3f} after {summary['steps']} steps")


if __name__ == "__main__":
    run_as_stage(main, own="rl", shared=("seed", "sft_data"))
