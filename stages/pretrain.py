"""Train the converted model on packed text; the result is the base model."""

from qwen3llada.params import Params, run_as_stage


def main(params: Params) -> None:
    from qwen3llada.training.loop import train

    train(params.pretrain, seed=params.seed)


if __name__ == "__main__":
    run_as_stage(main, own="pretrain", shared=("seed",))
