"""The model for lm-evaluation-harness: what lm-eval asks for against this project's own functions."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval")

from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
from qwen3llada.artifacts import read_json, read_jsonl, write_jsonl
from qwen3llada.corpus.builtin.model import write_tokenizer
from qwen3llada.errors import InputError
from qwen3llada.evaluation import harness_run
from qwen3llada.evaluation.harness import HarnessModel
from qwen3llada.evaluation.harness_request import HarnessRequest
from qwen3llada.evaluation.harness_text import cut_at, key_of
from qwen3llada.evaluation.likelihood import estimate
from qwen3llada.sampling.sampler import SampleParams, generate

PAIRS = [("the quick brown", " fox"), ("hello", " world hello"), ("the lazy ", "dog"), ("", "hello world")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    write_tokenizer(folder, ["the quick brown fox jumps over the lazy dog", "hello world " * 3], bpe_tokens=270)
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 1}
    sizes = {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 64}
    config = Qwen3LLadaConfig(**sizes, **heads, mask_token_id=300, block_length=4, initializer_range=0.5)
    Qwen3LLadaForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return HarnessModel(str(folder), rounds=4, seed=2, gen_length=8, batch_size=2)


def asked(*arguments):
    return [SimpleNamespace(args=given) for given in arguments]


def test_likelihoods_are_the_bounds_of_the_tokens(model):
    found = model.loglikelihood(asked(*PAIRS))
    for (context, continuation), (value, greedy) in zip(PAIRS, found, strict=True):
        given, tokens = model.encode_pair(context, continuation)
        assert model.tokenizer.decode(given + tokens) == context + continuation
        expected = estimate(
            model.text.model, [given + tokens], rounds=4, seed=2, prompt_lengths=[len(given)],
            keys=[key_of(given, tokens)],
        ).log_likelihoods()[0]  # fmt: skip
        assert value == pytest.approx(expected.nats, rel=1e-5)
        assert value < 0
        assert greedy is False
    backwards = model.loglikelihood(asked(*PAIRS[::-1]))[::-1]
    assert [value for value, _ in backwards] == pytest.approx([value for value, _ in found], rel=1e-5)
    assert model.loglikelihood(asked(PAIRS[1]))[0][0] == pytest.approx(found[1][0], rel=1e-5)


def test_spaces_at_the_end_of_a_context_go_to_the_continuation(model):
    given, tokens = model.encode_pair("the lazy ", "dog")
    assert (model.tokenizer.decode(given), model.tokenizer.decode(tokens)) == ("the lazy", " dog")
    assert model.encode_pair("the lazy", " dog") == (given, tokens)
    given, tokens = model.encode_pair("the dog\n", "hello")
    assert (model.tokenizer.decode(given), model.tokenizer.decode(tokens)) == ("the dog\n", "hello")


def test_a_long_text_is_cut_into_windows_that_predict_each_token_once(model, monkeypatch):
    seen = []
    monkeypatch.setattr(model, "_bounds", lambda windows: [seen.append(w) or -float(len(w[1])) for w in windows])
    text = "hello world the quick brown fox " * 30
    tokens = model.encode(text)
    assert len(tokens) > 3 * 64
    assert model.loglikelihood_rolling(asked((text,), ("hello",), ("",))) == [
        -float(len(tokens)), -float(len(model.encode("hello"))), 0.0
    ]  # fmt: skip
    windows = seen[:-1]
    assert [token for _, predicted in windows for token in predicted] == tokens
    assert all(len(given) + len(predicted) <= 64 for given, predicted in windows)
    ends = [predicted[-1:] for _, predicted in windows]
    assert [given for given, _ in windows] == [[], *ends[:-1]]


def test_answers_are_the_sampler_s_up_to_the_stop_string(model):
    contexts = ["hello", "the quick brown fox jumps", "the lazy dog hello world"]
    settings = {"until": ["\n\n"], "max_gen_toks": 6}
    found = model.generate_until(asked(*((context, settings) for context in contexts)))
    params = SampleParams(steps=7, gen_length=6)
    for context, answer in zip(contexts, found, strict=True):
        given = model.encode(context)
        ends = model.text.ends
        (tokens,) = generate(
            model.text.model, [given], params, seed=2, row_keys=[key_of(given, [])], eos_token_ids=ends
        ).tokens
        expected = model.tokenizer.decode(tokens, skip_special_tokens=True)
        assert answer == cut_at(expected, ["\n\n"])
    stop = next(letter for letter in found[0] if letter.strip())
    (cut,) = model.generate_until(asked((contexts[0], settings | {"until": [stop]})))
    assert cut == found[0][: found[0].index(stop)]


def test_the_first_of_several_stop_strings_ends_an_answer():
    assert cut_at("one\ntwo Question: three", ["Question:", "\n", ""]) == "one"
    assert cut_at("one", ["x"]) == "one"


def test_greedy_is_what_the_sampler_gives(folder):
    checking = HarnessModel(str(folder), rounds=1, check_greedy=True)
    given = checking.encode("the quick")
    answer = checking._answers([given], checking.params.model_copy(update={"gen_length": 2, "steps": 4}))[0]
    wrong = [(answer[0] + 1) % 256, *answer[1:]]
    assert checking._greedy([(given, answer), (given, wrong)]) == [True, False]


def test_conversations_take_the_form_of_the_training(model):
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
    assert model.apply_chat_template([*turns, {"role": "user", "content": "the dog"}]) == "hello\nworld\nthe dog\n"
    assert model.apply_chat_template(turns, add_generation_prompt=False) == "hello\nworld"
    assert (model.chat_template(True), model.chat_template(False)) == ("plain", None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dtype": "int8"}, "dtype=int8 must be one of float32, bfloat16"),
        ({"device": "tpu"}, "device='tpu' cannot be used here"),
        ({"stepz": 3}, "model_args: stepz: unknown"),
        ({"unmask": "none"}, "model_args: unmask: unmask='none' must be one of fixed"),
    ],
)
def test_wrong_model_args_are_one_line(folder, given, said):
    with pytest.raises(InputError, match=said):
        HarnessModel(str(folder), **given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_gpu_that_lm_eval_asks_for_by_itself_is_not_needed(folder, caplog):
    assert HarnessModel(str(folder), device="cuda:0").device.type == "cpu"
    assert "is not there: computing on the CPU" in caplog.text


def test_lm_eval_runs_the_shipped_tasks_and_keeps_results_and_samples(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")  # asks pip, which takes a second
    rows = [
        {"question": "the fox?", "choices": [f"hello {x}" for x in ("a", "b", "c", "d")], "label": i} for i in range(3)
    ]
    write_jsonl(tmp_path / "data/harness/world_choice.jsonl", rows)
    request = HarnessRequest(tasks=["world_choice"], rounds=2, out=tmp_path / "out", limit=2)
    results = harness_run.run_tasks(request, folder, seed=4)
    assert results["world_choice"]["acc,none"] in (0.0, 0.5, 1.0)
    (written,) = (tmp_path / "out").rglob("results_*.json")
    stored = read_json(written)
    assert stored["results"]["world_choice"] == results["world_choice"]
    assert (stored["config"]["random_seed"], stored["config"]["rounds"], stored["config"]["seed"]) == (4, 2, 4)
    (samples,) = (tmp_path / "out").rglob("samples_world_choice_*.jsonl")
    assert len(list(read_jsonl(samples))) == 2
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: SimpleNamespace(all_tasks=["world_choice"]))
    with pytest.raises(InputError, match="tasks=nothing is no task of lm-eval"):
        harness_run.run_tasks(HarnessRequest(tasks=["nothing"], out=tmp_path / "out"), folder, seed=4)
