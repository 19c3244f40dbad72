"""A conversation's earlier turns are not computed again, and the tokens are those of a call from scratch."""

import io

import pytest
import torch
from rich.console import Console
from test_work import watched
from torch.utils._python_dispatch import TorchDispatchMode
from vocabulary import EOS

from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import layer_kinds
from qwen3llada.sampling.dialogue.chat import Chat, ChatParams
from qwen3llada.sampling.dialogue.conversation import Conversation
from qwen3llada.sampling.sampler import SampleParams, Session, generate

PARAMS = SampleParams(steps=12, gen_length=10, block_length=4)
KNOBS = [{}, {"cfg_scale": 1.5}, {"temperature": 0.7, "edit_threshold": 0.1}, {"unmask": "factor", "factor": 2.0}]
CAUSAL = ["block_causal", "window", "alternate:window,block_causal"]
FIRST, QUESTION = [1, 3, 5, 7, 9, 11], [20, 22, 24]


@pytest.fixture
def with_policy(model, monkeypatch):
    """Gives the model another attention policy until the test ends."""

    def change(policy, window=1):
        monkeypatch.setattr(model.config, "attention_policy", policy)
        monkeypatch.setattr(model.config, "window_blocks", window)
        monkeypatch.setattr(model.config, "layer_types", layer_kinds(policy, model.config.num_hidden_layers))
        return model

    return change


def turn(model, prompt, params=PARAMS, session=None):
    """The answer, and the (rows, columns) of each forward pass."""
    with watched(model) as (passes, _):
        generation = generate(model, [prompt], params, seed=3, eos_token_ids=(), session=session)
    assert generation.forward_passes == len(passes)
    return generation.tokens[0].tolist(), passes


@pytest.mark.parametrize(
    ("policy", "knobs"),
    [*((CAUSAL[0], knobs) for knobs in KNOBS), (CAUSAL[1], KNOBS[0]), (CAUSAL[2], KNOBS[2])],
)
def test_a_turn_has_the_tokens_of_a_call_from_scratch(with_policy, policy, knobs):
    model, session, params = with_policy(policy), Session(), PARAMS.model_copy(update=knobs)
    prompt = FIRST
    for _ in range(3):
        answer, _ = turn(model, prompt, params, session)
        assert answer == turn(model, prompt, params)[0]
        prompt = [*prompt, *answer, *QUESTION]


def test_the_second_turn_computes_only_what_is_new(with_policy):
    """The first turn's canvas is 6 + 10 tokens, blocks 0 to 3. The last is never computed from clean tokens."""
    model, session = with_policy("block_causal"), Session()
    answer, passes = turn(model, FIRST, session=session)
    assert sum(columns for _, columns in passes) == 4 + 10 * 4 + 2 * 4  # the prompt's block, the steps, 2 clean blocks
    assert session.columns == 12
    second = [*FIRST, *answer, *QUESTION]  # 19 tokens: 4 whole blocks and 3 tokens of the answer's first block
    again, passes = turn(model, second, session=session)
    assert passes[0] == (1, 16 - 12)
    assert again == turn(model, second)[0]
    _, from_scratch = turn(model, second)
    assert from_scratch[0] == (1, 16)
    assert from_scratch[1:] == passes[1:]


def test_a_prompt_that_is_known_needs_no_pass_of_its_own(with_policy):
    model, session = with_policy("block_causal"), Session()
    first, passes = turn(model, FIRST, session=session)
    again, fewer = turn(model, FIRST, session=session)
    assert again == first
    assert fewer == passes[1:]


def test_what_differs_from_the_earlier_turn_is_computed_again(with_policy):
    model, session = with_policy("block_causal"), Session()
    answer, _ = turn(model, FIRST, session=session)
    other = [*FIRST, *answer, *QUESTION]
    other[9] += 1  # in the third block
    tokens, passes = turn(model, other, session=session)
    assert passes[0] == (1, 16 - 8)
    assert tokens == turn(model, other)[0]


def test_another_policy_block_length_guidance_or_model_starts_anew(with_policy):
    for policy, window, knobs in (
        ("window", 1, {}),
        ("window", 2, {}),
        ("block_causal", 2, {"block_length": 2, "steps": 6}),
        ("block_causal", 2, {"cfg_scale": 1.0}),
        ("block", 2, {}),
        ("full", 2, {}),
    ):
        session = Session()
        turn(with_policy("block_causal"), FIRST * 2, session=session)
        model = with_policy(policy, window)
        params = PARAMS.model_copy(update={"steps": 4} | knobs)
        assert turn(model, FIRST * 2, params, session) == turn(model, FIRST * 2, params)
    session = Session()
    model = with_policy("block_causal")
    turn(model, FIRST * 2, session=session)
    other = type(model)(model.config).eval()
    assert turn(other, FIRST * 2, session=session) == turn(other, FIRST * 2)


def test_an_interrupted_turn_leaves_a_session_that_can_be_continued(with_policy):
    """The pass that computes a finished block stops between the layers, when only the first has new keys."""
    model, session, calls = with_policy("block_causal"), Session(), []

    def stop(*_):
        calls.append(None)
        if len(calls) == 4:  # after the prompt's pass and the first block's two steps
            raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        turn(model, FIRST, PARAMS.model_copy(update={"steps": 9}), session)
    handle.remove()
    assert turn(model, FIRST, session=session)[0] == turn(model, FIRST)[0]


def test_a_session_is_one_conversation(with_policy):
    with pytest.raises(InputError, match="a session is one conversation: prompts must hold one row, given 2"):
        generate(with_policy("block_causal"), [[1], [2]], PARAMS, session=Session())


def test_a_chat_and_a_conversation_compute_only_what_is_new(text, monkeypatch):
    monkeypatch.setattr(text.model.config, "attention_policy", "block_causal")
    sizes = {"steps": 12, "gen_length": 12, "block_length": 4}
    talk = Conversation(text, SampleParams(**sizes), seed=5)
    chat = Chat(text, "a-model", ChatParams(**sizes, seed=5), console=Console(file=io.StringIO()))
    for ask in (talk.ask, chat.take):
        columns = []
        for question in ("3 5 7 9 11 13", "9 2", "4 6"):
            prompt = len(talk.prompt(question) if ask == talk.ask else chat.conversation.prompt(question))
            with watched(text.model) as (passes, _):
                ask(question)
            columns.append((prompt // 4 * 4, passes[0][1]))
        assert columns[0][0] == columns[0][1] == 4
        assert all(first < whole for whole, first in columns[1:])
    assert talk.history == chat.history
    for number, (question, answer) in enumerate(talk.history):
        alone = Conversation(text, SampleParams(**sizes), seed=5)
        alone.history = talk.history[:number]
        assert alone.ask(question).answer == answer
    talk.reset()
    assert talk.history == []


class Longest(TorchDispatchMode):
    """Most positions of any hidden states, [1, Q, width], that an operation makes."""

    def __init__(self, widths) -> None:
        super().__init__()
        self.positions, self.widths = 0, widths

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 3 and tensor.shape[-1] in self.widths:
                self.positions = max(self.positions, tensor.shape[1])
        return made


@pytest.mark.parametrize("policy", ["block_causal", "window"])
def test_a_long_answer_needs_keys_and_values_only(with_policy, policy):
    """No pass holds hidden states of more than two blocks, up to the model's last position."""
    model, at_once = with_policy(policy), {"unmask": "threshold", "confidence_threshold": 0.0}
    params = SampleParams(steps=60, gen_length=60, block_length=4, **at_once)
    with Longest({32, 64}) as longest:
        generation = generate(model, [[1, 2, 3, 4]], params, eos_token_ids=())
    assert len(generation.tokens[0]) == 60
    assert longest.positions == 8
    with pytest.raises(InputError, match="must not exceed the model's max_position_embeddings=64"):
        generate(model, [[1, 2, 3, 4]], params.model_copy(update={"gen_length": 61}), eos_token_ids=(EOS,))
