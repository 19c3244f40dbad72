"""Fine-tune the base model on prompts and answers."""

from qwen3llada.params import Params, run_as_stage


def main(params: Params) -> None:
    from qwen3llada.training.loop import train

    train(params.sft, seed=params.seed, template=params.sft_data.template)


if __name__ == "__main__":
    run_as_stage(main, own="sft", shared=("seed", "sft_data"))
