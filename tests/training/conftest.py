"""A model of a few thousand parameters, and tokenized samples for it in the form of the earlier stages."""

from pathlib import Path

import numpy as np
import pytest
from one_thread import one_thread  # noqa: F401 - an autouse fixture
from tiny_settings import WORDS, common, write_model

from qwen3llada.artifacts import write_json
from qwen3llada.corpus.tokens.packing import MANIFEST, new_sequences
from qwen3llada.corpus.tokens.tokenizer import identity, load_tokenizer, template_identity
from qwen3llada.training.params import PretrainParams, SftParams


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A folder with model/, pretrain/{train,heldout} and sft/{train,heldout}."""
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder / "model")
    tokenizer = load_tokenizer(folder / "model")
    rng = np.random.default_rng(0)
    for split, samples in (("train", 22), ("heldout", 6)):
        write_sequences(folder / "pretrain" / split, [sentence(rng, 16) for _ in range(samples)])
        answers = [sentence(rng, int(length)) for length in rng.integers(6, 16, samples)]
        write_sequences(folder / "sft" / split, answers, prompts=[3 + i % 2 for i in range(samples)])
        for kind, form in (("pretrain", {"template": None}), ("sft", template_identity(tokenizer, "plain"))):
            write_json(folder / kind / split / MANIFEST, identity(tokenizer) | form)
    return folder


def sentence(rng: np.random.Generator, length: int) -> np.ndarray:
    """Counts up from a random word, which can be learnt."""
    return ((rng.integers(WORDS) + np.arange(length)) % WORDS).astype(np.int32)


def write_sequences(folder: Path, samples: list[np.ndarray], prompts: list[int] | None = None) -> None:
    folder.mkdir(parents=True)
    with new_sequences(folder, prompts=prompts is not None) as writer:
        lengths = np.array([len(s) for s in samples])
        writer.add(np.concatenate(samples), lengths, None if prompts is None else np.array(prompts))
        writer.close()


@pytest.fixture
def pretraining(tiny, tmp_path) -> PretrainParams:
    """Six steps of four samples. 22 samples make five and a half steps per epoch."""
    return PretrainParams.model_validate(common(tiny, tmp_path, "pretrain"))


@pytest.fixture
def fine_tuning(tiny, tmp_path) -> SftParams:
    return SftParams.model_validate(common(tiny, tmp_path, "sft"))
