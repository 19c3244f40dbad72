"""Upload a model with its card, and its export, to the Hugging Face hub; --card FILE writes the card alone.

The card is the README.md that training wrote into the model's folder, as you may have edited it, with the scores in
reports/.
"""

from qwen3llada.params import Params, run_as_stage
from qwen3llada.serving.params import PushRequest


def main(params: Params, request: PushRequest) -> None:
    from qwen3llada.artifacts import new_file
    from qwen3llada.destinations import CARD, check_destinations
    from qwen3llada.serving.card_scores import card_of
    from qwen3llada.serving.push import push

    folder = request.folder or params.sft.dst
    if request.card is not None:
        check_destinations({"card": (request.card, CARD)}, {"folder": folder})
    card = card_of(folder, params.model_dump(mode="json", by_alias=True))
    if request.card is not None:
        with new_file(request.card) as temporary:
            temporary.write_text(card, encoding="utf-8")
    elif request.repo is not None:
        private, replace = not request.public, request.replace_card
        print(push(request.repo, folder, card, export=request.export, private=private, replace_card=replace))


if __name__ == "__main__":
    run_as_stage(main, shared=("seed", "pretrain", "sft"), request=PushRequest)
