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
from qwen3llada.evaluation.harness import HarnessModel, main
from qwen3llada.evaluation.harness_args import GenerationArgs, ModelArgs, read_generation, read_model_args
from qwen3llada.evaluation.harness_request import HarnessRequest
from qwen3llada.evaluation.harness_text import cut_at, key_of
from qwen3llada.evaluation.likelihood import estimate
from qwen3llada.sampling.params import AnswerParams
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
        ({"device": 7}, "device='7' cannot be used here"),
        ({"stepz": 3}, r"model_args: stepz: unknown key \(did you mean steps\?\)"),
        ({"unmask": "none"}, "model_args: unmask: unmask='none' must be one of fixed"),
        ({"check_greedy": "no"}, "model_args: check_greedy: given 'no', must be true or false"),
        ({"check_greedy": 0}, "model_args: check_greedy: given 0, must be true or false"),
        ({"rounds": "many"}, "model_args: rounds: given 'many', .*; allowed: 1 to 10,000"),
        ({"rounds": 2.5}, "model_args: rounds: given 2.5, .*; allowed: 1 to 10,000"),
        ({"rounds": 0}, "model_args: rounds: given 0, .*; allowed: 1 to 10,000"),
        ({"seed": -1}, "model_args: seed: given -1, .*; allowed: 0 to below 2"),
        ({"batch_tokens": True}, "model_args: batch_tokens: given True, must be a number"),
        ({"batch_size": "all"}, "model_args: batch_size: given 'all', .*; allowed: 1 to 65,536"),
        ({"batch_size": "-3"}, "model_args: batch_size: given '-3', .*; allowed: 1 to 65,536"),
        ({"batch_size": "auto", "max_batch_size": 0}, "model_args: max_batch_size: given 0, .*; allowed: 1 to 65,536"),
        ({"pretrained": 7}, "model_args: pretrained: given 7, must be the folder of a checkpoint"),
        ({"pretrained": None}, "model_args: pretrained: missing, must be given"),
    ],
)
def test_wrong_model_args_are_one_line(folder, given, said):
    with pytest.raises(InputError, match=said) as caught:
        HarnessModel(**{"pretrained": str(folder)} | given)
    assert "\n" not in str(caught.value)


def test_arguments_come_as_text_or_as_values():
    """lm-eval has several ways from its command line to the model."""
    as_text = {"rounds": "4", "seed": "3", "check_greedy": "true", "steps": "8", "temperature": "0.5"}
    as_values = {"rounds": 4, "seed": 3.0, "check_greedy": True, "steps": 8, "temperature": 0.5}
    for size in ("2", 2):
        for given in (as_text, as_values):
            args, notes = read_model_args(given | {"batch_size": size, "max_batch_size": None})
            assert (args.rounds, args.seed, args.check_greedy, notes) == (4, 3, True, [])
            assert args.answering == AnswerParams(steps=8, temperature=0.5, batch_size=2)
    assert not read_model_args({"check_greedy": "false"})[0].check_greedy
    assert read_model_args({}) == (ModelArgs(), [])


@pytest.mark.parametrize(
    ("given", "size", "said"),
    [
        ({"batch_size": "auto"}, 16, "batch_size=auto: no size is searched for; 16 answers are decoded together"),
        ({"batch_size": "auto:4", "max_batch_size": 64}, 16, "batch_size=auto:4: no size is searched for; 16 answers"),
        ({"batch_size": "auto", "max_batch_size": "3"}, 3, "batch_size=auto: no size is searched for; 3 answers"),
        ({"batch_size": 8, "max_batch_size": 4}, 8, "max_batch_size=4 is not used: it goes with batch_size=auto"),
    ],
)
def test_what_is_not_used_as_it_stands_is_named(folder, caplog, given, size, said):
    assert HarnessModel(str(folder), **given).params.batch_size == size
    assert caplog.text.count(said) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_gen_toks": "long"}, "generation_kwargs: max_gen_toks: given 'long', "),
        ({"max_gen_toks": 2.5}, "generation_kwargs: max_gen_toks: given 2.5, "),
        ({"max_gen_toks": 0}, "generation_kwargs: gen_length: given 0, "),
        ({"do_sample": "no"}, "generation_kwargs: do_sample: given 'no', must be true or false"),
        ({"do_sample": True, "temperature": "hot"}, "generation_kwargs: temperature: given 'hot', "),
        ({"until": 3}, "generation_kwargs: until"),
    ],
)
def test_wrong_generation_settings_are_one_line(model, given, said):
    with pytest.raises(InputError, match=said) as caught:
        model.generate_until(asked(("hello", given)))
    assert "\n" not in str(caught.value)


def test_generation_settings_are_read_and_those_without_effect_are_named(model):
    stops = {"until": "x"}
    assert model._generation(stops | {"do_sample": "true", "temperature": 0.5})[0].temperature == 0.5
    assert model._generation({"do_sample": True}) == (
        AnswerParams(gen_length=8, steps=9, temperature=1.0, batch_size=2), ()
    )  # fmt: skip
    assert model._generation(stops | {"do_sample": "false"})[1] == ("x",)
    args, notes = read_generation({"temperature": 0.7, "top_p": 0.9, "until": ["a", "b"]})
    assert args.stops == ("a", "b")
    assert notes == [
        "generation settings that this model does not have: top_p",
        "temperature=0.7 is not used without do_sample=true",
    ]
    assert read_generation({"temperature": 0.0, "do_sample": False, "until": None}) == (
        GenerationArgs(temperature=0.0, do_sample=False), []
    )  # fmt: skip


def test_the_program_says_in_one_line_what_is_wrong(folder, monkeypatch, capsys):
    given = f"pretrained={folder},check_greedy=no"
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: HarnessModel.create_from_arg_string(given))
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: model_args: check_greedy: given 'no', must be true or false\n"


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
