"""Tasks of lm-evaluation-harness on a model: one command for each published number. Not a stage of dvc.yaml.

--tasks '["world_choice"]' chooses tasks of lm-eval, of --include_path FOLDER, or the three that come with this project.
Results and all samples are kept in reports/harness, in lm-eval's own format. Needs `pip install '.[harness]'`.
"""

from pathlib import Path

from qwen3llada.evaluation.harness_request import HarnessRequest
from qwen3llada.params import Params, run_as_stage

CONVERSATIONS = Path("data/validated")


def main(params: Params, request: HarnessRequest) -> None:
    from qwen3llada.evaluation.harness_run import DATA, run_tasks, write_task_data

    write_task_data(CONVERSATIONS, DATA, seed=params.seed)
    run_tasks(request, request.model or params.sft.dst, seed=params.seed)


if __name__ == "__main__":
    run_as_stage(main, shared=("seed", "sft"), request=HarnessRequest)
