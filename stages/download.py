"""The model, the text and the conversations, from their sources to data/raw, with a record of what was taken."""

import glob
from pathlib import Path

from qwen3llada.destinations import OUTPUT, check_destinations
from qwen3llada.params import Params, run

RAW = Path("data/raw")


def main(params: Params) -> None:
    from qwen3llada.corpus.download import download, source_notes

    written = {str(RAW / name): (RAW / name, OUTPUT) for name in ("model", "text", "conversations")}
    check_destinations(written, local_sources(params))
    record = download(
        RAW, model=params.model, text=params.pretrain_data, conversations=params.sft_data, world=params.builtin
    )
    for name, entry in record.items():
        size = sum(file["bytes"] for file in entry["files"].values())
        print(f"{name}: {len(entry['files'])} files, {size:,} bytes from {entry['source']}")
        for note in source_notes(entry):
            print(f"{name}: {note}")


def local_sources(params: Params) -> dict[str, str]:
    """What `download` reads, by knob; of a glob the first file that lies in data/raw, if one does."""
    given = {"model.source": params.model.source}
    for section, data in (("pretrain_data", params.pretrain_data), ("sft_data", params.sft_data)):
        given |= {f"{section}.name": data.name, f"{section}.heldout_name": data.heldout_name or ""}
        given |= {f"{section}.mixture.{number}": source.name for number, source in enumerate(data.mixture)}
    for knob, name in given.items():
        if glob.has_magic(name):
            found = glob.glob(str(Path(name).expanduser()), recursive=True)
            given[knob] = next((file for file in found if RAW.absolute() in Path(file).absolute().parents), "")
    return {knob: name for knob, name in given.items() if name}


if __name__ == "__main__":
    run(main, shared=("builtin", "model", "pretrain_data", "sft_data"))
