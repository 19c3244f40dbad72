"""A tiny model that engines could serve: the mask token at 151669, policy block_causal."""

import pytest
import torch

MASK = 151669


@pytest.fixture(scope="session")
def engine_tokenizer(tmp_path_factory):
    """Words for the ids below the mask's: w0, w1, …; the EOS stands before the mask."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(MASK - 1)} | {"<eos>": MASK - 1, "<mask>": MASK}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", mask_token="<mask>")


@pytest.fixture(scope="session")
def make_checkpoint(engine_tokenizer, tmp_path_factory):
    """make_checkpoint(shard=…, dtype=…, **config): a folder with random weights and that tokenizer."""
    from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    def make(shard="1GB", dtype=torch.float32, **config):
        folder = tmp_path_factory.mktemp("checkpoint")
        sizes = {
            "vocab_size": 151680,
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 128,
            "initializer_range": 0.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
            "tie_word_embeddings": True,
            "mask_token_id": MASK,
            "eos_token_id": MASK - 1,
            "attention_policy": "block_causal",
            "block_length": 4,
        }
        torch.manual_seed(0)
        model = Qwen3LLadaForMaskedLM(Qwen3LLadaConfig(**sizes | config)).to(dtype).eval()
        model.save_pretrained(folder, max_shard_size=shard)
        engine_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def servable(make_checkpoint):
    return make_checkpoint()


@pytest.fixture(scope="session")
def text():
    """A tiny model with its tokenizer, in memory: words for ids, the EOS among them, policy block_causal."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
    from qwen3llada.sampling.dialogue.text_model import TextModel

    words = {f"w{i}": i for i in range(62)} | {"<eos>": 62, "<mask>": 63}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", mask_token="<mask>")
    torch.manual_seed(1)
    config = Qwen3LLadaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.6,
        mask_token_id=63,
        eos_token_id=62,
        attention_policy="block_causal",
        block_length=4,
    )
    return TextModel(Qwen3LLadaForMaskedLM(config).eval(), fast)
