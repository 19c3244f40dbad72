"""What the stage evaluate writes, against the functions it is made of; two processes write what one does."""

import csv
import os
import shutil

import numpy as np
import pytest
import torch

from qwen3llada.artifacts import file_digest, read_json, write_json
from qwen3llada.corpus.tokens.packing import MANIFEST, new_sequences
from qwen3llada.corpus.tokens.tokenizer import identity, load_tokenizer, template_identity
from qwen3llada.errors import InputError
from qwen3llada.evaluation.autoregressive import autoregressive_nll
from qwen3llada.evaluation.held_out import evaluate_models
from qwen3llada.evaluation.likelihood import nelbo
from qwen3llada.evaluation.params import EvaluateParams
from qwen3llada.evaluation.processes import join_processes
from qwen3llada.evaluation.quality_speed import settings
from qwen3llada.modeling.loading import load_pretrained
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.sampling.params import SampleParams
from qwen3llada.sampling.sampler import generate
from tests.objective.objective_steps import make_model
from tests.training.runs import free_port, run_together

EOS, MASK = 44, 66  # the model says 44 by itself, so some answers end before the canvas does
PARAMS = EvaluateParams(
    samples=0,
    rounds=2,
    batch_tokens=64,
    prompts=5,
    confidence_thresholds=(0.2,),
    tokens_per_step=(1, 4),
    seed=3,
    settings=(
        {"unmask": "factor", "factor": 3.0},
        {"unmask": "entropy_bound"},
        {"unmask": "threshold", "confidence_threshold": 0.4, "edit_threshold": 0.2},
        {"remask": 1, "steps": 4},
        {"position_temperature": 0.5},
    ),
)
SAMPLE = SampleParams(gen_length=8, block_length=4, batch_size=2)
TEXTS = [[5, 9, 2, 30, 7, 8], [1, 2, 3], [11, 3, 8, 8, 20, 6, 4, 1, 1]]
PAIRS = [([3, 4], [7, EOS]), ([9], [2, 2, EOS]), ([5, 6, 7], [1, EOS]), ([8, 8], [EOS]), ([1, 2, 3, 4], [9, 9, 9, EOS])]


def write(folder, rows, prompts, tokenizer):
    with new_sequences(folder / "heldout", prompts=prompts is not None) as writer:
        lengths = np.array([len(row) for row in rows])
        writer.add(np.concatenate(rows).astype(np.int32), lengths, None if prompts is None else np.array(prompts))
        writer.close()
    template = {"template": None} if prompts is None else template_identity(tokenizer, "plain")
    write_json(folder / "heldout" / MANIFEST, identity(tokenizer) | template)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Folders: two models of ours, the Qwen3 with the weights of the first, texts and answers."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    root = tmp_path_factory.mktemp("evaluate")
    words = {f"w{i}": i for i in range(67)} | {"<eos>": EOS, "<mask>": MASK}
    words = {word: i for word, i in words.items() if word not in (f"w{EOS}", f"w{MASK}")}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="<eos>", mask_token="<mask>"
    )
    for name, policy in (("base", "full"), ("sft", "block_causal")):
        model = make_model()
        model.config.attention_policy, model.config.block_length, model.config.eos_token_id = policy, 4, EOS
        model.save_pretrained(root / name)
        fast.save_pretrained(root / name)
    values = {k: v for k, v in model.config.to_dict().items() if k not in ("model_type", "architectures", "is_causal")}
    plain = Qwen3ForCausalLM(Qwen3Config(**values))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(root / "qwen3")
    fast.save_pretrained(root / "qwen3")
    tokenizer = load_tokenizer(root / "sft")
    write(root / "text", TEXTS, None, tokenizer)
    write(root / "answers", [prompt + answer for prompt, answer in PAIRS], [len(p) for p, _ in PAIRS], tokenizer)
    return root


def measure(root, reports, **changes):
    return evaluate_models(
        {"pretrain": root / "base", "sft": root / "sft"},
        {"text": root / "text", "answers": root / "answers"},
        root / "qwen3",
        PARAMS.model_copy(update=changes),
        SAMPLE,
        reports,
    )


@pytest.fixture(scope="module")
def reports(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    assert measure(project, folder) == read_json(folder / "evaluate.json")
    return folder


def test_the_numbers_are_those_of_the_functions(project, reports):
    numbers = read_json(reports / "evaluate.json")
    rows, prompts = [prompt + answer for prompt, answer in PAIRS], [len(prompt) for prompt, _ in PAIRS]
    for name, folder in (("pretrain", "base"), ("sft", "sft")):
        model = load_pretrained(project / folder, dtype=torch.float32)
        for kind, bound in (
            ("text", nelbo(model, TEXTS, rounds=2, seed=3)),
            ("answers", nelbo(model, rows, rounds=2, seed=3, prompt_lengths=prompts)),
        ):
            assert numbers[name][f"{kind}_nelbo"] == pytest.approx(bound.nats, abs=2e-6)
            assert numbers[name][f"{kind}_nelbo_error"] == pytest.approx(bound.standard_error, abs=2e-6)
    from transformers import Qwen3ForCausalLM

    plain = Qwen3ForCausalLM.from_pretrained(project / "qwen3")
    expected = autoregressive_nll(plain, rows, prompt_lengths=prompts, start_token=EOS).nats
    assert numbers["source"]["answers_nll"] == pytest.approx(expected, abs=2e-6)
    expected = autoregressive_nll(plain, TEXTS, start_token=EOS).nats
    assert numbers["source"]["text_nll"] == pytest.approx(expected, abs=2e-6)
    details = read_json(reports / "evaluate/details.json")["models"]
    assert (details["sft"]["answers"]["tokens"], details["sft"]["answers"]["sequences"]) == (12, 5)


def test_quality_is_counted_from_the_answers_alone(project, reports):
    model = load_pretrained(project / "sft", dtype=torch.float32)
    prompts = [prompt for prompt, _ in PAIRS]
    quality = read_json(reports / "evaluate/details.json")["quality"]
    assert [(row["unmask"], row["setting"]) for row in quality] == [
        ("threshold", 0.2),
        ("fixed", 1),
        ("fixed", 4),
        ("factor", 3.0),
        ("entropy_bound", 0.1),
        ("threshold + edit_threshold", "confidence_threshold 0.4, edit_threshold 0.2"),
        ("fixed + remask + steps", "remask 1, steps 4"),
        ("fixed + position_temperature", 0.5),
    ]
    steps = SAMPLE.model_copy(update={"steps": 3})  # prompts of 1 to 4 tokens: an answer of 8 touches up to 3 blocks
    tokens, work, passes = [], 0, 0
    for start in (0, 2, 4):
        batch = prompts[start : start + 2]
        keys = range(start, start + len(batch))
        found = generate(model, batch, steps, seed=3, row_keys=keys, eos_token_ids=(EOS,))
        tokens += [answer.tolist() for answer in found.tokens]
        work, passes = work + found.forward_passes * len(batch), passes + found.forward_passes
    row = quality[2]
    assert row["tokens"] == sum(map(len, tokens)) < 5 * 8
    assert row["tokens_per_pass"] == pytest.approx(sum(map(len, tokens)) / work, abs=2e-6)
    assert row["forward_passes"] == passes
    assert row["exact_match"] == sum(t == answer for t, (_, answer) in zip(tokens, PAIRS, strict=True)) / 5
    given = [prompt + answer for prompt, answer in zip(prompts, tokens, strict=True)]
    lengths = [len(prompt) for prompt in prompts]
    bound = nelbo(model, given, rounds=8, seed=3, prompt_lengths=lengths)
    assert row["answer_nll"] == pytest.approx(bound.nats, abs=2e-6)


@pytest.mark.parametrize("number", range(3, 8))
def test_a_further_setting_is_the_section_with_its_knobs(project, reports, number):
    model, knobs = load_pretrained(project / "sft", dtype=torch.float32), PARAMS.settings[number - 3]
    row = read_json(reports / "evaluate/details.json")["quality"][number]
    params = SAMPLE.model_copy(update={"steps": max(SAMPLE.steps, 3)} | knobs)
    count, passes = 0, 0
    for start in (0, 2, 4):
        batch = [prompt for prompt, _ in PAIRS[start : start + 2]]
        keys = range(start, start + len(batch))
        found = generate(model, batch, params, seed=3, row_keys=keys, eos_token_ids=(EOS,))
        count, passes = count + sum(map(len, found.tokens)), passes + found.forward_passes
    assert (row["tokens"], row["forward_passes"]) == (count, passes)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"unmask": "best"}, "unmask='best' must be one of fixed, threshold, factor, entropy_bound"),
        ({"facto": 1.0}, r"settings\[0\]: facto: unknown key .*did you mean factor"),
        ({"remask": 1, "unmask": "factor"}, "remask=1 must not be combined with unmask=factor"),
    ],
)
def test_a_further_setting_that_is_none_says_so(knobs, message):
    with pytest.raises(ValueError, match=message):
        EvaluateParams(settings=(knobs,))


def test_a_further_setting_must_agree_with_the_section(project):
    text = TextModel.load(project / "sft")
    sample = SAMPLE.model_copy(update={"remask": 1})
    with pytest.raises(
        InputError, match=r"^evaluate.settings\[0\]: .*remask=1 must not be combined with unmask=factor"
    ):
        settings(
            EvaluateParams(confidence_thresholds=(), tokens_per_step=(), settings=({"unmask": "factor"},)),
            sample,
            text.model.config,
        )


def test_the_tables_hold_the_same_and_speeds_lie_apart(reports):
    details = read_json(reports / "evaluate/details.json")
    with (reports / "evaluate/quality.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["exact_match"]) for row in rows] == [row["exact_match"] for row in details["quality"]]
    with (reports / "evaluate/levels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["model"], row["data"]) == ("sft", "text")]
    levels = details["models"]["sft"]["text"]["by_noise_level"]
    # The middle of each bucket that holds anything, whatever buckets are empty.
    assert {f"{float(r['noise_level']):.2f}": float(r["cross_entropy"]) for r in rows} == {
        f"{float(name[:3]) + 0.05:.2f}": value for name, value in levels.items()
    }
    speed = read_json(reports / "evaluate/throughput.json")
    assert speed["of"] == file_digest(reports / "evaluate/details.json")
    assert len(speed["settings"]) == len(details["quality"]) == 8
    assert {row["backend"] for row in speed["settings"]} == {"eager"}
    assert "seconds" not in (reports / "evaluate/details.json").read_text()


def member(rank, root, reports, port):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    measure(root, reports / str(rank))
    torch.distributed.destroy_process_group()


def test_two_processes_write_what_one_does(project, reports, tmp_path):
    run_together(2, member, project, tmp_path, free_port())
    assert not (tmp_path / "1").exists()  # only the first one writes
    for name in ("evaluate.json", "evaluate/details.json", "evaluate/levels.csv", "evaluate/quality.csv"):
        assert (tmp_path / "0" / name).read_bytes() == (reports / name).read_bytes()


def test_processes_that_cannot_be_are_refused():
    with pytest.raises(InputError, match=r"WORLD_SIZE='none' must be the number of processes"):
        join_processes({"WORLD_SIZE": "none"})


def test_without_prompts_there_is_no_curve(project, tmp_path):
    measure(project, tmp_path, prompts=0)
    assert read_json(tmp_path / "evaluate/details.json")["quality"] == []


def test_one_text_has_no_standard_error(project, tmp_path):
    """Its likelihood under Qwen3 is exact, and one draw of a bound tells nothing of its spread: null, for JSON."""
    found = measure(project, tmp_path, samples=1, prompts=1, rounds=1, answer_rounds=1)
    assert found == read_json(tmp_path / "evaluate.json")
    for row in found.values():
        assert {key: value for key, value in row.items() if key.endswith("_error")} == dict.fromkeys(
            [key for key in row if key.endswith("_error")]
        )
    assert found["sft"]["answers_nelbo"] > 0
    assert {row["answer_nll_error"] for row in read_json(tmp_path / "evaluate/details.json")["quality"]} == {None}
    twice = measure(project, tmp_path, samples=1, prompts=0, rounds=2)
    assert twice["sft"]["text_nelbo_error"] > 0  # over the rounds


def test_a_setting_that_does_not_fit_is_named_before_anything_is_measured(project, tmp_path, monkeypatch):
    monkeypatch.delattr("qwen3llada.evaluation.held_out.estimate")
    monkeypatch.delattr("qwen3llada.evaluation.held_out.sequence_nats")
    with pytest.raises(InputError, match=r"evaluate: unmask fixed \+ steps at 1: steps=1 must be at least"):
        measure(project, tmp_path, settings=({"steps": 1},))


def test_data_of_another_tokenizer_than_the_first_models_are_refused_before_anything_is_measured(
    project, tmp_path, monkeypatch
):
    base = tmp_path / "base"
    shutil.copytree(project / "base", base)
    config = base / "tokenizer_config.json"
    write_json(config, read_json(config) | {"eos_token": "w1"})
    monkeypatch.delattr("qwen3llada.evaluation.held_out.measure_quality")
    monkeypatch.delattr("qwen3llada.evaluation.held_out.estimate")
    data = {"answers": project / "answers"}
    with pytest.raises(InputError, match="tokenizer"):
        evaluate_models({"pretrain": base, "sft": project / "sft"}, data, None, PARAMS, SAMPLE, tmp_path / "reports")


def test_a_step_of_more_tokens_than_a_block_is_refused(project, tmp_path):
    with pytest.raises(InputError, match="tokens_per_step=8 must not exceed block_length=4"):
        measure(project, tmp_path, tokens_per_step=(1, 8))
    assert not tmp_path.joinpath("evaluate.json").exists()


def test_a_model_of_text_alone_is_measured_on_prompts_of_any_template(project, tmp_path):
    """Pretraining knows no template; fine-tuning stores that of its data."""
    chat = tmp_path / "answers"
    shutil.copytree(project / "answers", chat)
    manifest = chat / "heldout" / MANIFEST
    write_json(manifest, read_json(manifest) | template_identity(load_tokenizer(project / "sft"), "chat"))
    folders = {"pretrain": project / "base", "sft": project / "sft"}
    data, few = {"answers": chat}, PARAMS.model_copy(update={"prompts": 0})
    with pytest.raises(InputError, match="its prompts have template=chat, the model's have plain"):
        evaluate_models(folders, data, None, few, SAMPLE, tmp_path)
    tuned = tmp_path / "sft"
    shutil.copytree(project / "sft", tuned)
    write_json(tuned / "config.json", read_json(tuned / "config.json") | {"prompt_template": "chat"})
    found = evaluate_models(folders | {"sft": tuned}, data, None, few, SAMPLE, tmp_path)
    assert found.keys() == {"pretrain", "sft"}


def test_a_sweep_compares_by_the_bound_of_the_answers(reports):
    from flows.comparison import choose_metric

    tree = read_json(reports / "evaluate.json")
    found = {f"reports/evaluate.json:{name}.{key}": n for name, row in tree.items() for key, n in row.items()}
    losses = {"reports/eval_loss.json:sft.guidelines": 0.5, "reports/sample.json:exact_match": 0.5}
    assert choose_metric([{"metrics": found | losses}], None) == "reports/evaluate.json:sft.answers_nelbo"
