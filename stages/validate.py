"""Hold the conversations to the rules; only what passes reaches data/validated, which fine-tuning reads."""

import sys
from pathlib import Path

from qwen3llada.destinations import OUTPUT, check_destinations
from qwen3llada.params import Params, run_as_stage

RAW = Path("data/raw")
VALIDATED = Path("data/validated")
REPORTS = Path("reports")


def main(params: Params) -> None:
    from qwen3llada.corpus.validation.gate import InvalidConversations, validate

    written = {str(path): (path, OUTPUT) for path in (VALIDATED, REPORTS / "validation")}
    check_destinations(written, {"baseline": params.validation.baseline})
    try:
        report = validate(
            RAW / "conversations",
            VALIDATED,
            REPORTS,
            model_folder=RAW / "model",
            params=params.validation,
            num_proc=params.sft_data.num_proc,
        )
    except InvalidConversations as error:
        print(error.table, file=sys.stderr)
        raise
    for warning in report["warnings"]:
        print(f"warning: {warning}")
    for split in ("train", "heldout"):
        print(f"{split}: {report[split]['records']:,} records, {report[split]['invalid']:,} invalid and set aside")


if __name__ == "__main__":
    run_as_stage(main, own="validation", shared=("sft_data",))
