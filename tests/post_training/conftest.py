"""A tiny model, prompts for it, and a reward that depends on the answer's tokens."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from one_thread import one_thread  # noqa: F401 - an autouse fixture
from tiny_settings import WORDS, write_model

from qwen3llada.artifacts import write_json
from qwen3llada.corpus.tokens.packing import MANIFEST, new_sequences
from qwen3llada.corpus.tokens.tokenizer import identity, load_tokenizer, template_identity
from qwen3llada.post_training.params import RlParams

REWARD = '''
def low_words(sample):
    """Share of the answer's words below w20."""
    words = sample.answer.split()
    return sum(int(word[1:]) < 20 for word in words) / max(1, len(words))
'''


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A folder with model/, data/{train,heldout} of prompts with answers, and reward.py."""
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder / "model")
    tokenizer, rng = load_tokenizer(folder / "model"), np.random.default_rng(0)
    for split, samples in (("train", 7), ("heldout", 3)):
        path = folder / "data" / split
        path.mkdir(parents=True)
        with new_sequences(path, prompts=True) as writer:
            lengths = rng.integers(6, 10, samples)
            tokens = rng.integers(0, WORDS, lengths.sum()).astype(np.int32)
            writer.add(tokens, lengths, rng.integers(2, 5, samples))
            writer.close()
        write_json(path / MANIFEST, identity(tokenizer) | template_identity(tokenizer, "plain"))
    (folder / "reward.py").write_text(REWARD)
    return folder


@pytest.fixture
def params(tiny, tmp_path) -> RlParams:
    """Eight steps: four batches of two prompts, the fourth of one, with four rollouts each and two updates."""
    return RlParams.model_validate(
        {
            "model": tiny / "model",
            "data": tiny / "data",
            "dst": tmp_path / "model",
            "output_dir": tmp_path / "work",
            "reports": tmp_path / "reports" / "rl",
            "max_length": 16,
            "max_steps": 8,
            "micro_batch_size": 8,
            "optim": {"lr": 0.01, "warmup_ratio": 0.1},
            "attention": {"block_length": 4},
            "save_steps": 0,
            "logging_steps": 1,
            "eval_every_steps": 4,
            "group_size": 4,
            "prompts_per_batch": 2,
            "updates_per_batch": 2,
            "rewards": [{"name": f"{tiny / 'reward.py'}:low_words"}],
            "rollout": {"gen_length": 8, "block_length": 4, "steps": 4},
        }
    )
