"""The model, the text and the conversations, from their sources to data/raw, with a record of what was taken."""

from pathlib import Path

from qwen3llada.destinations import OUTPUT, check_destinations
from qwen3llada.params import Params, run_as_stage

RAW = Path("data/raw")


def main(params: Params) -> None:
    from qwen3llada.corpus.fetch.download import download, source_notes
    from qwen3llada.corpus.fetch.sources import local_sources

    written = {str(RAW / name): (RAW / name, OUTPUT) for name in ("model", "text", "conversations")}
    check_destinations(written, local_sources(RAW, params.model, params.pretrain_data, params.sft_data))
    record = download(
        RAW, model=params.model, text=params.pretrain_data, conversations=params.sft_data, world=params.builtin
    )
    for name, entry in record.items():
        size = sum(file["bytes"] for file in entry["files"].values())
        print(f"{name}: {len(entry['files'])} files, {size:,} bytes from {entry['source']}")
        for note in source_notes(entry):
            print(f"{name}: {note}")


if __name__ == "__main__":
    run_as_stage(main, shared=("builtin", "model", "pretrain_data", "sft_data"))
