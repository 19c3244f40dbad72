"""The comparison with LMDeploy's engine, without the engine: what it is asked, and what is made of its answers."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

from bench import engine_agreement, engine_lessons, engine_load, engine_speed, engines
from bench.engine_agreement import State, forced, free, replay, share
from bench.engine_load import body, command
from bench.engine_speed import OURS, ROWS, THEIRS, Row
from bench.lmdeploy_engine import engine_options
from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
from qwen3llada.sampling.sampler import SampleParams, stream

MASK, BLOCK = 60, 4


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen3LLadaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.4,
        mask_token_id=MASK,
        attention_policy="block_causal",
        block_length=BLOCK,
    )
    return Qwen3LLadaForMaskedLM(config).eval()


@torch.no_grad()
def likeliest(model, tokens):
    """The most likely token at each position of the last block, which nothing later exists for."""
    numbers = torch.arange(len(tokens)) // BLOCK
    visible = torch.stack([numbers <= number for number in numbers])[None, None]
    logits = model(input_ids=torch.tensor([tokens]), attention_mask=visible).logits[0, -BLOCK:]
    logits[:, MASK] = -torch.inf
    return logits.argmax(-1).tolist()


def records_of(model, prompt, length):
    """What an engine that is this project's sampler would record for one prompt, and its answer."""
    end = -(-(len(prompt) + length) // BLOCK) * BLOCK
    params = SampleParams(block_length=BLOCK, gen_length=end - len(prompt), steps=end)
    before, records = prompt + [MASK] * (end - len(prompt)), []
    if len(prompt) % BLOCK == 0:  # the engine's first call sees the prompt's last block
        records.append(record(prompt[-BLOCK:], [0] * BLOCK, [False] * BLOCK))
    for step in stream(model, [prompt], params, eos_token_ids=()):
        after = step.canvas[0].tolist()
        start = before.index(MASK) // BLOCK * BLOCK
        block = slice(start, start + BLOCK)
        records.append(record(before[block], likeliest(model, before[: block.stop]), step.committed[0, block].tolist()))
        if MASK not in after[block]:
            records.append(record(after[block], after[block], [False] * BLOCK))
        before = after
    return before[len(prompt) : len(prompt) + length], records


def record(tokens, proposed, kept):
    return {"tokens": tokens, "masked": [token == MASK for token in tokens], "proposed": proposed, "kept": kept}


class TestTeacherForcing:
    @pytest.mark.parametrize("prompt", [[1, 2, 3, 4, 5], list(range(8)), [7], list(range(11))])
    def test_the_sampler_agrees_with_itself(self, model, prompt):
        answer, records = records_of(model, prompt, 10)
        states = replay(prompt, answer, records)
        found = forced(model, states)
        assert found["argmax"] == found["choice"] == 1
        assert found["steps"] == len(states) == sum(any(r["masked"]) for r in records)
        assert found["positions"] == sum(sum(state.masked) for state in states)

    def test_what_differs_is_counted(self, model):
        answer, records = records_of(model, [1, 2, 3, 4, 5], 10)
        states = replay([1, 2, 3, 4, 5], answer, records)
        first = states[0]  # three masks
        place = first.masked.index(True)
        other = [3 if i == place and token != 3 else token for i, token in enumerate(first.proposed)]
        assert other != first.proposed
        found = forced(model, [State(first.prefix, first.tokens, first.masked, other, first.kept), *states[1:]])
        assert found["argmax"] == 1 - 1 / found["positions"]
        wrong = [masked and not kept for masked, kept in zip(first.masked, first.kept, strict=True)]
        wrong[wrong.index(True)] = False  # one position again, but another one
        found = forced(model, [State(first.prefix, first.tokens, first.masked, first.proposed, wrong), *states[1:]])
        assert found["choice"] == 1 - 1 / found["steps"]

    def test_blocks_counted_from_the_prompts_end_are_seen(self, model):
        """An engine with another grid would agree far less."""
        answer, records = records_of(model, [1, 2, 3, 4, 5], 40)
        states = replay([1, 2, 3, 4, 5], answer, records)
        shifted = [State(s.prefix[1:], s.tokens, s.masked, s.proposed, s.kept) for s in states if s.prefix]
        assert forced(model, shifted)["argmax"] < 0.9

    def test_records_of_another_answer_are_refused(self, model):
        answer, records = records_of(model, [1, 2, 3, 4, 5], 10)
        with pytest.raises(ValueError, match="1 of 15 differ"):
            replay([1, 2, 3, 4, 5], [*answer[:-1], answer[-1] + 1], records)

    def test_calls_after_the_answer_are_left_out(self, model):
        answer, records = records_of(model, [1, 2, 3, 4, 5], 10)
        assert replay([1, 2, 3, 4, 5], answer, records) == replay(
            [1, 2, 3, 4, 5], answer, [*records, record([MASK] * 4, [1] * 4, [True] + [False] * 3)]
        )

    def test_the_last_block_needs_no_clean_pass(self, model):
        answer, records = records_of(model, [1, 2, 3, 4, 5], 11)
        assert replay([1, 2, 3, 4, 5], answer, records[:-1]) == replay([1, 2, 3, 4, 5], answer, records)


class TestAgreement:
    def test_free_answers_are_one_token_a_step(self, model, monkeypatch):
        monkeypatch.setattr(engine_agreement, "ANSWER", 10)
        prompts = [[1, 2, 3, 4, 5], list(range(8)), [7]]
        assert free(model, prompts, BLOCK) == [records_of(model, prompt, 10)[0] for prompt in prompts]

    def test_share(self):
        assert share([[1, 2], [3, 4]], [[1, 2], [4, 3]]) == 0.5

    def test_a_record_is_compared(self, model, tmp_path, monkeypatch):
        """The process of ours, on a record that its own sampler made."""
        monkeypatch.setattr(engine_agreement, "ANSWER", 8)
        model.save_pretrained(tmp_path)
        prompts = [[1, 2, 3], [4, 5, 6, 7]]
        alone = [records_of(model, prompt, 8) for prompt in prompts]
        file = tmp_path / "states.json"
        file.write_text(json.dumps({"prompts": prompts, "alone": alone, "batch": []}))
        found = list(engine_agreement.compare_ours(tmp_path, BLOCK, file))
        exact = next(one for one in found if one.get("ours") == "float32")
        assert (exact["free"], exact["argmax"], exact["choice"]) == (1, 1, 1)
        row = engine_agreement.table(found).splitlines()[2]
        assert row.startswith("| 4 | 100.0% |")
        assert row.endswith("| - |")  # the engine's own part did not run

    def test_prompts_without_words(self):
        assert [len(prompt) for prompt in engine_agreement.prompts(None)] == list(engine_agreement.LENGTHS)

    @pytest.mark.parametrize("block", engine_agreement.BLOCKS)
    def test_lengths_are_and_are_not_multiples(self, block):
        rests = {length % block == 0 for length in engine_agreement.LENGTHS}
        assert rests == {True, False}


class TestLessons:
    def test_the_loss_is_that_of_each_block_after_a_clean_prefix(self, model, monkeypatch):
        monkeypatch.setattr(engine_lessons, "MASK", MASK)
        known = torch.randint(0, MASK, (2, 12))
        torch.manual_seed(3)
        found = engine_lessons.blocks_loss(model, known, BLOCK)
        torch.manual_seed(3)  # the same masks
        share = torch.rand(2, 3, 1).expand(-1, -1, BLOCK).flatten(1)
        masked = torch.rand(2, 12) <= share
        assert 0 < masked.sum() < 24
        losses = []
        for row, mask in zip(known, masked, strict=True):
            for start in range(0, 12, BLOCK):
                own = mask[start : start + BLOCK]
                tokens = row[: start + BLOCK].clone()
                tokens[start:][own] = MASK
                numbers = torch.arange(len(tokens)) // BLOCK
                visible = torch.stack([numbers <= number for number in numbers])[None, None]
                logits = model(input_ids=tokens[None], attention_mask=visible).logits[0, start:]
                right = row[start : start + BLOCK]
                losses += torch.nn.functional.cross_entropy(logits[own], right[own], reduction="none").tolist()
        assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)

    def test_lessons_are_long_enough_for_the_answers(self):
        longest = max(engine_agreement.LENGTHS) + engine_agreement.ANSWER
        end = -(-longest // 32) * 32  # with the rest of the last block
        assert {len(lesson) for lesson in engine_lessons.lessons()} == {engine_lessons.LENGTH}
        assert end <= engine_lessons.LENGTH


class TestSpeed:
    def test_rows_of_a_case(self):
        case = Row(32, 8, 64).case
        assert case.given == {"block_length": 32, "gen_length": 256, "steps": 64}
        assert [len(prompt) for prompt in case.prompts()] == [128] * 64

    def test_every_row_is_measured_by_both_engines_once(self):
        for engine in (OURS, THEIRS):
            blocks = [block for name, block in engine_speed.parts() if name == engine]
            rows = [row for block in blocks for row in ROWS if block in (None, row.block)]
            assert sorted(rows) == sorted(ROWS)

    def test_table(self):
        found = [
            {"engine": THEIRS, "row": [32, 32, 8, 128], "rate": 2000.0},
            {"engine": OURS, "row": [32, 32, 8, 128], "rate": 5000.4},
            {"engine": OURS, "row": [4, 4, 1, 128], "rate": 700.0},
            {"engine": OURS, "note": "ready"},
        ]
        lines = engine_speed.table(found).splitlines()
        assert "| 32, 32 | 8 | 128 | 2,000 | 5,000 | 2.50 |" in lines
        assert "| 4, 4 | 1 | 128 | - | 700 | - |" in lines
        assert len(lines) == 2 + len(ROWS)

    def test_engine_options(self):
        options = engine_options(32, [1, 8, 128])
        assert options["max_batch_size"] * options["dllm_block_length"] <= options["max_prefill_token_num"]
        longest = max(row.prompt for row in ROWS) + engine_speed.ANSWER
        assert longest <= options["session_len"]


class TestLoad:
    def test_both_servers_are_asked_for_the_same(self):
        for number in range(20):
            ours, theirs = body(number, OURS, 32), body(number, THEIRS, 32)
            assert {name: ours[name] for name in ("prompt", "max_tokens", "temperature")} == {
                name: theirs[name] for name in ("prompt", "max_tokens", "temperature")
            }
            prompt = len(ours["prompt"].split())
            assert ours["steps"] * 32 >= prompt % 32 + ours["max_tokens"]  # one token a step at 32 steps a block
            assert ours["steps"] % 32 == 0

    def test_ours_can_be_started_as_written(self):
        from qwen3llada.commandline import validated
        from qwen3llada.serving.params import ServeParams

        line = command(OURS, Path("model"), Path("exported"), 32, 8000)
        assert line[:4] == [sys.executable, "-m", "stages.serve", "--bf16"]
        given = dict(flag.removeprefix("--").split("=") for flag in line[4:])
        assert validated(ServeParams, given, "serve").max_batch == engine_load.BATCH

    def test_table(self):
        found = [
            {"engine": OURS, "measured": False, "clients": 64, "requests_per_second": 1.0},
            {"engine": OURS, "measured": True, "clients": 64, "requests_per_second": 12.34, "tokens_per_second": 1500}
            | {"p50": 1.5, "p99": 2.25},
        ]
        lines = engine_load.table(found).splitlines()
        assert "| 64 | ours | 12.3 | 1,500 | 1.50 s | 2.25 s |" in lines
        assert "| 200 | LMDeploy | - | - | - | - |" in lines


class TestProcesses:
    def arguments(self, folder, **given):
        return argparse.Namespace(folder=folder, model=None, dtype="bfloat16", steps=32, **given)

    def test_a_part_that_fails_costs_only_itself(self, tmp_path, capsys):
        """Nothing was prepared here, so the process of ours has nothing to compare."""
        assert engines.child("agree", self.arguments(tmp_path), 60, engine=OURS, block=4) == []
        said = capsys.readouterr().out
        assert "# agree-ours-4: status 1" in said
        assert "FileNotFoundError" in said
        assert (tmp_path / "agree-ours-4.log").is_file()

    def test_arguments_reach_the_process(self):
        args = engines.parse(["speed", "--child", "--engine=LMDeploy", "--block=32", "--seconds=50", "--folder=/x"])
        assert (args.child, args.engine, args.block, args.seconds) == (True, THEIRS, 32, 50)
