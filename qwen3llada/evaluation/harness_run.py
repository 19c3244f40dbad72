"""The data of the three tasks in `tasks/`, made from this project's own, and a run of lm-eval over tasks."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada.artifacts import read_jsonl, write_jsonl
from qwen3llada.errors import InputError
from qwen3llada.evaluation.harness_request import HarnessRequest

TASKS = Path(__file__).parent / "tasks"
DATA = Path("data/harness")  # named in the task files too
GSM8K = Path("data/local/gsm8k")
CHOICES, PROBLEMS, SOLVED = 4, 40, 8
FACT = re.compile(r"(\w+) (\w+) (.+)")  # "Vera plays the horn.": who, verb, what


def write_task_data(conversations: Path, folder: Path, *, seed: int) -> dict[str, int]:
    """Write the tasks' data to `folder`; how many lines each file has.

    Args:
        conversations: folder with train/ and heldout/ of validated conversations. Held-out first questions are asked;
            wrong answers are right ones about others, so they are as well formed.
        seed: of the choice of wrong answers and of the generated word problems. Where data/local/gsm8k holds GSM8K, its
            problems are taken instead.

    Raises: InputError where no held-out question has answers to choose from.
    """
    held_out = _single(conversations / "heldout")
    facts = [
        match.groups()
        for _, answer in [*_single(conversations / "train"), *held_out]
        if (match := FACT.fullmatch(answer))
    ]
    rng = np.random.default_rng(seed)
    questions = [row for question, answer in held_out if (row := _choice(question, answer, facts, rng))]
    if not questions:
        raise InputError(f"{conversations}: no held-out question has {CHOICES} answers to choose from")
    names = sorted({who for who, _, _ in facts})
    files = {
        "world_choice": questions,
        "world_answer": [{"question": question, "answer": answer} for question, answer in held_out],
        "word_problems_train": _gsm8k("train", SOLVED) or _problems(names, SOLVED, rng),
        "word_problems": _gsm8k("test", None) or _problems(names, PROBLEMS, rng),
    }
    for name, rows in files.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    return {name: len(rows) for name, rows in files.items()}


def _single(folder: Path) -> list[tuple[str, str]]:
    """(question, answer) of the first turns, without the system prompt, each question once."""
    found: dict[str, str] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for record in read_jsonl(file):
            question, answer = (turn["value"] for turn in record["conversations"][:2])
            found.setdefault(question, answer)
    return list(found.items())


def _choice(question: str, answer: str, facts: Sequence[Any], rng: np.random.Generator) -> dict[str, Any] | None:
    """A question with its answer among wrong ones, which say of the same one what is true of others."""
    match = FACT.fullmatch(answer)
    if match is None:
        return None
    who, verb, what = match.groups()
    others = sorted({rest for _, other, rest in facts if other == verb and rest != what})
    if len(others) < CHOICES - 1:
        return None
    wrong = [others[i] for i in rng.choice(len(others), CHOICES - 1, replace=False)]
    label = int(rng.integers(CHOICES))
    wrong.insert(label, what)
    return {"question": question, "choices": [f"{who} {verb} {rest}" for rest in wrong], "label": label}


def _problems(names: Sequence[str], count: int, rng: np.random.Generator) -> list[dict[str, str]]:
    rows = []
    for _ in range(count):
        name, (a, b) = names[int(rng.integers(len(names)))], rng.integers(2, 50, 2).tolist()
        rows.append(
            {
                "question": f"{name} has {a} apples and picks {b} more. How many apples does {name} have?",
                "answer": f"{name} has {a} + {b} = {a + b} apples.\n#### {a + b}",
            }
        )
    return rows


def _gsm8k(split: str, count: int | None) -> list[dict[str, str]]:
    path = GSM8K / f"gsm8k_{split}.jsonl"
    rows: Iterator[Any] = iter(read_jsonl(path)) if path.is_file() else iter(())
    return [{"question": row["question"], "answer": row["answer"]} for row in rows][:count]


def run_tasks(request: HarnessRequest, model: Path, *, seed: int) -> dict[str, Any]:
    """Run lm-eval over the tasks, print its table, and write results and samples to `request.out` in its format.

    Returns: lm-eval's results by task.
    Raises: InputError if lm-eval is not installed, or a task is not there.
    """
    # Left alone, datasets asks a host about local files, too. Tasks with data on the hub need HF_HUB_OFFLINE=0.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        from lm_eval import simple_evaluate
        from lm_eval.loggers import EvaluationTracker
        from lm_eval.utils import make_table
    except ImportError as error:
        raise InputError(f"the harness needs lm-eval (pip install '.[harness]'): {error}") from error
    from qwen3llada.evaluation.harness import HarnessModel

    manager = _task_manager(request)
    tracker = EvaluationTracker(output_path=str(request.out))
    options: dict[str, Any] = {"rounds": request.rounds, "seed": seed, "dtype": request.dtype}
    options |= {} if request.steps is None else {"steps": request.steps}
    results = simple_evaluate(
        model=HarnessModel(str(model), batch_size=request.batch_size, **options),
        model_args={"pretrained": str(model)} | options,
        tasks=list(request.tasks),
        task_manager=manager,
        num_fewshot=request.num_fewshot,
        limit=request.limit,
        apply_chat_template=request.apply_chat_template,
        evaluation_tracker=tracker,
        log_samples=True,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    print(make_table(results))
    return results["results"]


def _task_manager(request: HarnessRequest) -> Any:
    """lm-eval's index of the tasks. Raises InputError if it lacks one that is asked for."""
    from lm_eval.tasks import TaskManager

    folders = [str(TASKS), *([str(request.include_path)] if request.include_path else [])]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if not set(request.tasks) <= set(manager.all_tasks):  # reading all of lm-eval's own takes half a minute
        manager = TaskManager(include_path=folders)
    if unknown := [name for name in request.tasks if name not in manager.all_tasks]:
        raise InputError(f"tasks={unknown[0]} is no task of lm-eval or of --include_path")
    return manager
