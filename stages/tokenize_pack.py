"""Text to sequences of fixed length and validated conversations to samples, as token ids on disk."""

from pathlib import Path

from qwen3llada.params import Params, run_as_stage

RAW = Path("data/raw")
VALIDATED = Path("data/validated")
TOKENIZED = Path("data/tokenized")
REPORTS = Path("reports/tokenize_pack")


def main(params: Params) -> None:
    from qwen3llada.corpus.tokens.tokenize import text_notes, tokenize_corpora

    counts = tokenize_corpora(
        RAW / "text",
        VALIDATED,
        TOKENIZED,
        REPORTS,
        tokenizer_folder=RAW / "model",
        text=params.pretrain_data,
        conversations=params.sft_data,
        pretrain_length=params.pretrain.max_length,
        sft_length=params.sft.max_length,
    )
    text, chats = counts["pretrain"]["train"], counts["sft"]["train"]
    if params.pretrain_data.streaming:
        print(f"pretrain: {text['shards']:,} shards of {text['shard_bytes']:,} bytes, tokenized while training")
    else:
        print(f"pretrain: {text['sequence_tokens']:,} tokens in {text['sequences']:,} sequences")
    for note in text_notes(counts["pretrain"]):
        print(f"pretrain: {note}")
    dropped = f"{chats['dropped']} too long and dropped"
    print(f"sft: {chats['sample_tokens']:,} tokens in {chats['samples']:,} samples, {dropped}")


if __name__ == "__main__":
    run_as_stage(main, shared=("pretrain_data", "sft_data", "pretrain", "sft"))
