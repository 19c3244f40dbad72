"""Upload a model with its card, and its export, to the Hugging Face hub; --card FILE writes the card alone.

The card says what data/raw/SOURCE.json, params.yaml and reports/ say of the run that made the model.
"""

from qwen3llada.params import Params, run_as_stage
from qwen3llada.serving.params import PushRequest


def main(params: Params, request: PushRequest) -> None:
    from qwen3llada.artifacts import new_file
    from qwen3llada.serving.model_card import gather, model_card
    from qwen3llada.serving.push import push

    folder = request.folder or params.sft.dst
    card = model_card(gather(folder, params.model_dump(mode="json", by_alias=True)))
    if request.card is not None:
        with new_file(request.card) as temporary:
            temporary.write_text(card, encoding="utf-8")
    elif request.repo is not None:
        print(push(request.repo, folder, card, export=request.export, private=not request.public))


if __name__ == "__main__":
    run_as_stage(main, shared=("seed", "pretrain", "sft"), request=PushRequest)
