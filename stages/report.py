"""One page about the run: reports/report.html, and its short form reports/summary.md."""

from pathlib import Path

from qwen3llada.params import Params, run_as_stage

REPORTS, SOURCE = Path("reports"), Path("data/raw/SOURCE.json")


def main(params: Params) -> None:
    from qwen3llada.report.page import write_report
    from qwen3llada.training.watch.settings import settings_hash

    page = write_report(
        REPORTS,
        params.report,
        runs={
            name: (section.reports, settings_hash(section, seed=params.seed))
            for name, section in (("pretrain", params.pretrain), ("sft", params.sft))
        },
        parameters=params.model_dump(mode="json", by_alias=True),
        source=SOURCE,
        model=params.sft.dst,
        heldout=params.sft.data / "heldout",
        sample=params.sample,
        seed=params.seed,
        post_training=params.rl.reports,
    )
    print(f"{page}: {page.stat().st_size:,} bytes")


if __name__ == "__main__":
    run_as_stage(main, own="report", shared=("seed", "pretrain", "sft", "rl", "sample"))
