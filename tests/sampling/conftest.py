"""A tiny model that has been trained a little, so that its confidences vary as a real model's do."""

import os
from pathlib import Path

import pytest
import torch
from vocabulary import EOS, MASK, VOCAB


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The `trained` model."""
    return trained(tmp_path_factory.getbasetemp())


def trained(folder: Path):
    """The model after `train`. The processes of a suite leave its weights for each other: training takes seconds.

    folder: pytest's folder for temporary files of this process.
    """
    file = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "trained.pt"
    if not file.exists():
        mine = file.with_suffix(f".{os.getpid()}")
        torch.save(train().state_dict(), mine)
        mine.rename(file)
    model = untrained()
    model.load_state_dict(torch.load(file))
    return model.eval()


def untrained():
    """float32, two query heads per key head."""
    from qwen3llada.modeling.modeling_qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    torch.manual_seed(0)
    config = Qwen3LLadaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        mask_token_id=MASK,
        eos_token_id=EOS,
        block_length=4,
        tie_word_embeddings=True,
    )
    return Qwen3LLadaForMaskedLM(config)


def train():
    """Briefly trained on arithmetic progressions that end in EOS."""
    model = untrained()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        start, stride = torch.randint(0, 46, (32, 1)), torch.randint(1, 6, (32, 1))
        text = (start + stride * torch.arange(24)) % 46
        text[torch.arange(24) >= torch.randint(8, 40, (32, 1))] = EOS
        hidden = torch.rand(32, 24) < torch.rand(32, 1)
        logits = model(input_ids=text.masked_fill(hidden, MASK)).logits
        loss = torch.nn.functional.cross_entropy(logits[hidden], text[hidden])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture(scope="session")
def biased_model(model):
    """That model with attention_bias: true, and biases large enough to change what it says."""
    biased = type(model)(type(model.config)(**{**model.config.to_dict(), "attention_bias": True}))
    biased.load_state_dict(model.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in biased.named_parameters():
            if name.endswith("proj.bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return biased.eval()


@pytest.fixture(scope="session")
def checkpoint(model, tmp_path_factory) -> Path:
    """That model in a folder, with a tokenizer whose words are the ids as numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("checkpoint")
    words = {str(i): i for i in range(EOS)} | {"<eos>": EOS, "<mask>": MASK}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", mask_token="<mask>")
    model.config.attention_policy = "full"
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text(checkpoint):
    """The checkpoint, loaded."""
    from qwen3llada.sampling.dialogue.text_model import TextModel

    return TextModel.load(checkpoint)


@pytest.fixture
def cuda_model(model):
    """The model on a GPU, for the time of a test."""
    yield model.cuda()
    model.cpu()
