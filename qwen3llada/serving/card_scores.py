"""A model's card for the hub: the one that lies with it, with the scores that the stages have measured since."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen3llada.modeling.loading import check_is_ours
from qwen3llada.training.model_card import (
    CARD,
    SOURCE,
    TITLES,
    CardFacts,
    Score,
    model_card,
    object_in,
    recipe_of,
    renewed,
    scores_table,
)

EVAL_LOSS, EVALUATE, SAMPLE = (Path("reports") / f"{name}.json" for name in ("eval_loss", "evaluate", "sample"))
BOUNDS = {"pretrain": ("text_nelbo", "held-out text"), "sft": ("answers_nelbo", "held-out answers")}


def card_of(model: Path, parameters: Mapping[str, Any], root: Path = Path()) -> str:
    """The card of the checkpoint in folder `model`.

    If there is a README.md in the folder, it is taken as it is, whoever wrote it; its part with the scores is renewed
    if scores of this model were measured. Scores are those of `sft.dst` and `pretrain.dst`.

    Raises: InputError if there is no model, or naming a file that is damaged.
    """
    check_is_ours(model)
    made = {name: Path(parameters[name]["dst"]) for name in TITLES}
    phases = tuple(name for name, path in made.items() if path == model)
    scores = tuple(_scores(root, phases[-1])) if phases else ()
    written = model / CARD
    if written.is_file():
        card = written.read_text(encoding="utf-8")
        return renewed(card, {"scores": scores_table(scores)}) if scores else card
    if phases == ("sft",) and Path(parameters["sft"]["model"]) == made["pretrain"]:
        phases = tuple(TITLES)
    recipes = [recipe_of(phase, parameters[phase], parameters["seed"]) for phase in phases]
    source = object_in(root / SOURCE) if phases else {}
    if phases and phases[-1] == "pretrain":
        source = {key: entry for key, entry in source.items() if not key.startswith("conversations")}
    config = object_in(model / "config.json")
    return model_card(CardFacts(config=config, recipe="\n\n".join(recipes), source=source, scores=scores))


def _scores(root: Path, phase: str) -> Iterator[Score]:
    bound, what = BOUNDS[phase]
    bounds = object_in(root / EVALUATE).get(phase, {})
    if bound in bounds:
        error = bounds.get(f"{bound}_error")  # null: of a single text
        value = f"{bounds[bound]:.3f}" + (f" ± {error:.3f}" if error is not None else "")
        yield f"NELBO of {what}, nats a token", value, "python -m stages.evaluate"
    exact = object_in(root / SAMPLE).get("exact_match")
    if exact is not None and phase == "sft":
        yield "held-out questions answered word for word", f"{exact:.3f}", "python -m stages.sample"
    for name, loss in object_in(root / EVAL_LOSS).get(phase, {}).items():
        if isinstance(loss, int | float):
            yield f"held-out loss `{name}`, nats", f"{loss:.3f}", "python -m stages.eval_loss"
