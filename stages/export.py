"""A checkpoint in the format of other inference engines (SGLang, LMDeploy, JetEngine, Diffulex), with their commands.

Every tensor written is compared with the checkpoint's. SERVING.md in the folder says how each engine is started.
"""

from qwen3llada.destinations import EXPORT, check_destinations
from qwen3llada.params import Params, run_as_stage


def main(params: Params) -> None:
    section = params.export
    check_destinations({"dst": (section.dst, EXPORT)}, {"model": section.model})  # before torch is imported
    from qwen3llada.serving.export import export_checkpoint

    report = export_checkpoint(section.model, section.dst, section.format, section.dtype)
    print(
        f"{section.model} -> {report.destination}: {report.tensors} tensors, {report.bytes:,} bytes ({report.dtype}),"
        f" answers end with {report.eos_token_id}, prompts as taught ({report.template});"
        f" {report.destination}/SERVING.md has the commands"
    )


if __name__ == "__main__":
    run_as_stage(main, own="export")
