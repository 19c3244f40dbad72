"""A tiny Qwen3 checkpoint with random weights, in the files and conventions of the Qwen3 base models on the hub."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3llada.artifacts import write_json
from qwen3llada.corpus.builtin.grammar import words
from qwen3llada.corpus.text.piece_encoder import PATTERN
from qwen3llada.errors import InputError

if TYPE_CHECKING:
    from qwen3llada.corpus.builtin.params import BuiltinParams

EMBEDDING_MULTIPLE = 64
MAX_POSITIONS = 2048
ROPE_THETA = 10000.0
END_OF_TEXT = "<|endoftext|>"  # EOS and padding token, as in the base models

# Qwen3's added tokens in order of their ids. The second group is not special: decoders keep those tokens.
SPECIAL_TOKENS = words(
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
)
MARKUP_TOKENS = words(
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think>"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def write_tokenizer(folder: Path, texts: Iterable[str], *, bpe_tokens: int) -> None:
    """Train a byte-level BPE of `bpe_tokens` tokens on `texts` and write its files in Qwen's format.

    Raises: InputError if the texts do not yield so many tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=bpe_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < bpe_tokens:
        raise InputError(
            f"{bpe_tokens=} must be at most {tokenizer.get_vocab_size()}, all that this text can be merged to"
        )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in MARKUP_TOKENS])

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json, merges.txt
    write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer))


def _tokenizer_config(tokenizer) -> dict:
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL_TOKENS,
        }
        for token in SPECIAL_TOKENS + MARKUP_TOKENS
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "errors": "replace",
        "model_max_length": MAX_POSITIONS,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def write_weights(folder: Path, params: "BuiltinParams", *, seed: int) -> None:
    """Write config.json, generation_config.json and model.safetensors (float32) for the tokenizer in `folder`.

    Matrices are normal with deviation `initializer_range`, drawn in the order of their names; norms are one.
    They depend only on `seed`, not on the global generator.
    """
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    used = max(ids.values()) + 1
    config = Qwen3Config(
        vocab_size=-(-(used + params.free_rows) // EMBEDDING_MULTIPLE) * EMBEDDING_MULTIPLE,
        hidden_size=params.hidden_size,
        intermediate_size=params.intermediate_size,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        num_key_value_heads=params.kv_heads,
        head_dim=params.head_dim,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=params.initializer_range,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=ids[END_OF_TEXT],  # as in the Qwen3 base models, although their tokenizer has no BOS
        eos_token_id=ids[END_OF_TEXT],
    )
    config.dtype = torch.float32
    with torch.random.fork_rng(devices=[]):
        model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.ndim > 1:
                weight.normal_(0.0, params.initializer_range, generator=generator)
    model.generation_config = GenerationConfig(
        bos_token_id=ids[END_OF_TEXT], eos_token_id=ids[END_OF_TEXT], do_sample=False, max_new_tokens=MAX_POSITIONS
    )
    model.save_pretrained(folder)
