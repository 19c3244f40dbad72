"""Training writes a card with each final model: what the run knows, and the same bytes for the same run."""

import json
import shutil

import pytest

from qwen3llada.artifacts import read_marker
from qwen3llada.training import model_card as cards
from qwen3llada.training.loop import train
from qwen3llada.training.model_card import marked, parts, renewed, training_card

SOURCES = {
    "model": {"source": "Qwen/Qwen3-0.6B-Base", "revision": "abc", "licence": "Apache-2.0", "files": {}},
    "text": {"source": "org/texts", "revision": None, "licence": None, "files": {}},
    "conversations": {"source": "my/chats.jsonl", "revision": None, "licence": "mit", "files": {}},
}


@pytest.mark.parametrize("adapter", [{}, {"method": "lora"}, {"method": "lora", "merge": False}], ids=str)
def test_every_final_model_has_its_card(fine_tuning, tmp_path, adapter):
    if adapter:
        pytest.importorskip("peft")
    knobs = {"max_steps": 2, "adapter": adapter, "output_dir": tmp_path / "w", "dst": tmp_path / "one"}
    params = type(fine_tuning).model_validate(fine_tuning.model_dump(by_alias=True) | knobs)
    train(params, seed=7)
    card = (params.dst / "README.md").read_text()
    assert "### Fine-tuning on conversations" in card
    assert "| `seed` | 7 |" in card
    assert "| `max_steps` | 2 |" in card
    assert f"| `adapter.method` | {adapter.get('method', 'none')} |" in card
    assert "| lowest held-out loss of the training, `guidelines`, nats (step 2) |" in card
    assert str(tmp_path) not in card
    assert "README.md" in (read_marker(params.dst) or ())
    if not adapter:
        again = params.model_copy(update={"dst": tmp_path / "two", "output_dir": tmp_path / "v"})
        train(again, seed=7)
        assert (again.dst / "README.md").read_bytes() == (params.dst / "README.md").read_bytes()


@pytest.fixture
def config():
    from qwen3llada import Qwen3LLadaConfig

    return Qwen3LLadaConfig(mask_token_id=7, attention_policy="block_causal", block_length=4)


def test_a_card_names_base_and_data_only_of_the_pipelines_own_runs(config, tmp_path):
    from qwen3llada.training.params import PretrainParams, SftParams

    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/SOURCE.json").write_text(json.dumps(SOURCES))
    of_run = {"seed": 0, "best": None, "root": tmp_path}
    card = training_card(SftParams.model_validate({}), config, **of_run)
    assert 'base_model: "Qwen/Qwen3-0.6B-Base"' in card
    assert "| conversations | my/chats.jsonl | – | mit |" in card
    assert "None measured. `python -m stages.evaluate`" in card
    assert "chats" not in training_card(PretrainParams.model_validate({}), config, **of_run)
    for other in ({"data": "elsewhere"}, {"model": "elsewhere"}):
        card = training_card(SftParams.model_validate(other), config, **of_run)
        assert "Not recorded" in card
        assert "Qwen3-0.6B-Base" not in card


def test_the_recipe_of_the_model_that_it_started_from_comes_first(config, tmp_path):
    from qwen3llada.training.params import PretrainParams, SftParams

    base = tmp_path / "base"
    base.mkdir()
    of_run = {"seed": 3, "best": None, "root": tmp_path}
    (base / "README.md").write_text(training_card(PretrainParams.model_validate({}), config, **of_run))
    recipe = parts(training_card(SftParams.model_validate({"model": base}), config, **of_run))["recipe"]
    assert recipe.index(cards.TITLES["pretrain"]) < recipe.index(cards.TITLES["sft"])
    shutil.rmtree(base)
    assert cards.TITLES["pretrain"] not in training_card(SftParams.model_validate({"model": base}), config, **of_run)


def test_only_what_a_program_knows_is_renewed():
    card = f"mine\n\n{marked('scores', 'old')}\n\nalso mine\n\n{marked('recipe', 'kept')}\n"
    assert renewed(card, {"scores": "new", "data": "nowhere"}) == card.replace("old", "new")
    assert renewed("all mine\n", {"scores": "new"}) == "all mine\n"
    assert parts(card) == {"scores": "old", "recipe": "kept"}
