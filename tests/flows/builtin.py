"""The built-in pipeline as a flow: from nothing to the report, through kills to the same model, bad input, a sweep.

Many minutes, so not part of the suite:

python -m pytest tests/flows/builtin.py -s
"""

import json
import time

import psutil
import pytest
from flow_clone import Clone
from flow_kills import kill
from flow_service import LONG_PATIENCE, Service

from qwen3llada.report.charts import line_chart, number

pytestmark = pytest.mark.timeout(7200)
SECONDS_TO_END = 15
PARAMS = "configs/ci.yaml"
LONGER = [  # enough steps to interfere with
    "pretrain.max_steps=600",
    "pretrain.save_steps=20",
    "pretrain.eval_every_steps=200",
]
BEFORE_TRAINING = ("download", "convert", "analyze", "validate", "tokenize_pack")
ORDER = (*BEFORE_TRAINING, "pretrain", "sft", "eval_loss", "evaluate", "sample", "report")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """After a run from nothing to the report, without a server of its own."""
    made = Clone(tmp_path_factory.mktemp("undisturbed"))
    overrides = [word for override in LONGER for word in ("--set", override)]
    done = made.start("-m", "flows.pipeline", "--params", PARAMS, *overrides, variables=made.home)
    output = done.communicate(timeout=LONG_PATIENCE)[0]
    assert done.returncode == 0, output[-3000:]
    return made


@pytest.fixture
def clone(tmp_path):
    made = Clone(tmp_path)
    yield made
    for process in made.processes():
        process.kill()


@pytest.fixture
def service(clone):
    made = Service(clone, clone.root.parent / "prefect", PYTHONPATH=clone.home["PYTHONPATH"])
    yield made
    if made.process.poll() is None:
        made.stop()


def test_from_nothing_to_the_report(undisturbed):
    page = (undisturbed.root / "reports/report.html").read_text()
    assert "held-out answers exact" in page
    assert undisturbed.dvc("status").stdout.strip() == "Data and pipelines are up to date."


def test_dvc_shows_the_figures_of_the_page(undisturbed):
    page = (undisturbed.root / "reports/report.html").read_text()
    plots = json.loads(undisturbed.dvc("plots", "show", "--json").stdout)["data"]

    def curve(name):
        values = plots[f"reports/pretrain/plots/metrics/{name}.tsv"][0]["content"]["data"]["values"]
        return [(float(value["step"]), float(value[name.rpartition("/")[2]])) for value in values]

    loss = {"training": curve("train/loss"), "held out": curve("eval/loss")}
    assert line_chart(loss, x_label="step", y_label="loss") in page
    assert line_chart({"lr": curve("train/learning_rate")}, x_label="step", y_label="learning rate") in page
    assert not [file for file in plots if "tokens_per_second" in file or "memory" in file]
    assert undisturbed.git("status", "--porcelain", "dvc_plots") == ""

    metrics = json.loads(undisturbed.dvc("metrics", "show", "--json").stdout)[""]["data"]
    for losses in metrics["reports/eval_loss.json"]["data"].values():
        for name in ("guidelines", "dllm", "soft_ce"):
            assert f">{number(losses[name])}</td>" in page
    assert f"<b>{number(100 * metrics['reports/sample.json']['data']['exact_match'])} %</b>" in page


def test_through_cancellation_and_kills_to_the_same_model(undisturbed, clone, service):
    from prefect.states import Cancelling

    run = service.submit("nightly", params=PARAMS, overrides=LONGER)
    clone.wait_for_training()
    with service.client() as client:
        client.set_flow_run_state(run, Cancelling(), force=True)
    asked = time.monotonic()
    clone.wait_until(lambda: not clone.running("flows.guard", "dvc", "stages.pretrain"), LONG_PATIENCE)
    print(f"\nfrom the request to cancel to the end of all processes of the stage: {time.monotonic() - asked:.1f} s")
    assert time.monotonic() - asked < SECONDS_TO_END
    assert service.ended(run, LONG_PATIENCE).is_cancelled()
    assert clone.dvc("status").returncode == 0

    run = service.submit("nightly")
    seen = clone.saved()
    trainer = clone.wait_for_training(seen)
    trainer.kill()
    trainer.wait()
    seen = clone.saved()
    trainer = clone.wait_for_training(seen)  # tried again, and it got further than before
    next(parent for parent in trainer.parents() if "repro" in parent.cmdline()).kill()
    psutil.wait_procs([trainer], LONG_PATIENCE)
    seen = clone.saved()
    clone.wait_for_training(seen)
    attempts = service.task_runs(run)["pretrain"].run_count
    kill(clone, "worker", "prefect.engine")
    clone.wait_until(lambda: not clone.processes(), LONG_PATIENCE)
    assert attempts == 3
    assert "was killed by signal 9" in service.said()
    assert clone.dvc("status").returncode == 0

    service.start()
    run = service.submit("nightly")
    assert service.ended(run, LONG_PATIENCE).is_completed(), service.state(run)
    resumed = json.loads((clone.root / "reports/pretrain/speed.json").read_text())["resumed_from"]
    print(f"resumed from {resumed}; models and optimiser: {json.dumps(clone.digests(), indent=2)}")
    assert resumed
    assert clone.digests() == undisturbed.digests()
    assert (clone.root / "dvc.lock").read_bytes() == (undisturbed.root / "dvc.lock").read_bytes()
    artifacts = service.artifacts(run)
    assert {"metrics", "summary", "samples", "report", "progress-pretrain"} <= artifacts.keys()
    assert artifacts["progress-pretrain"] == 100


def test_bad_parameters_and_bad_data_fail_before_anything_is_trained(clone, service):
    run = service.submit("nightly", overrides=["pretrain.optim.lr=-1"])
    assert service.ended(run, LONG_PATIENCE).is_failed()
    assert "pretrain.optim.lr: given -1" in service.state(run).message
    assert service.task_runs(run) == {}
    assert clone.git("status", "--porcelain") == ""
    assert not (clone.root / "data").exists()

    # written into params.yaml by hand
    whole = (clone.root / "params.yaml").read_text()
    (clone.root / "params.yaml").write_text(whole.replace("people: 24", "people: -24"))
    run = service.submit("nightly")
    assert service.ended(run, LONG_PATIENCE).is_failed()
    assert "builtin.people: given -24" in service.state(run).message
    assert service.task_runs(run) == {}
    (clone.root / "params.yaml").write_text(whole)

    records = clone.root.parent / "bad.jsonl"
    good = [
        {"conversations": [{"from": "human", "value": f"Hello {i}?"}, {"from": "gpt", "value": "Yes."}]}
        for i in range(40)
    ]
    bad = {"conversations": [{"from": "human", "value": "Hello?"}]}
    records.write_text("".join(json.dumps(record) + "\n" for record in [*good, bad]))
    overrides = [f"sft_data.name={records}", "sft_data.heldout_fraction=0.1"]
    run = service.submit("nightly", params=PARAMS, overrides=overrides)
    assert service.ended(run, LONG_PATIENCE).is_failed()
    print(f"\n{service.state(run).message}")
    assert service.state(run).message.startswith("stage validate: exit status 1: error: ")
    counts = {name: task.run_count for name, task in service.task_runs(run).items()}
    assert counts == {"download": 1, "convert": 1, "analyze": 1, "validate": 1}
    assert not (clone.root / "data/tokenized").exists()
    assert not (clone.root / "out/qwen3llada-base").exists()


def test_a_sweep_of_the_losses_leaves_the_workspace_alone(undisturbed):
    undisturbed.git("commit", "-qam", "short run")
    service = Service(undisturbed, undisturbed.root.parent / "prefect", PYTHONPATH=undisturbed.home["PYTHONPATH"])
    try:
        run = service.submit("sweep", flow="sweep", jobs=2)
        assert service.ended(run, LONG_PATIENCE).is_completed(), service.state(run)
        table = json.loads(service.artifacts(run)["sweep"])
    finally:
        service.stop()
    assert undisturbed.git("status", "--porcelain") == ""
    assert undisturbed.dvc("status").stdout.strip() == "Data and pipelines are up to date."

    result = json.loads((undisturbed.root / "reports/sweep.json").read_text())
    rows = {row["name"]: row for row in result["variants"]}
    assert list(rows) == ["sweep-guidelines", "sweep-dllm", "sweep-soft_ce"]
    assert result["metric"] == "reports/evaluate.json:sft.answers_nelbo"
    for row in rows.values():
        print(f"\n{row['name']}: {row['metrics'][result['metric']]:.4f} in {row['seconds']} s, {row['stages']}")
        assert tuple(row["stages"]) == ORDER
        assert {row["stages"][stage] for stage in BEFORE_TRAINING} == {"cached"}  # they ran once, in the workspace
    assert rows["sweep-guidelines"]["stages"]["sft"] == "cached"
    assert rows["sweep-dllm"]["stages"]["pretrain"] == rows["sweep-soft_ce"]["stages"]["pretrain"] == "ran"
    assert [row[result["metric"]] for row in table] == [row["metrics"][result["metric"]] for row in rows.values()]
    plot = (undisturbed.root / "reports/sweep.svg").read_text()
    assert all(name in plot for name in rows)

    shown = undisturbed.dvc("exp", "show", "--csv", "--no-pager").stdout
    assert all(name in shown for name in rows)
    difference = json.loads(undisturbed.dvc("params", "diff", "sweep-guidelines", "sweep-dllm", "--json").stdout)
    assert set(difference["params.yaml"]) == {"pretrain.loss_impl", "sft.loss_impl"}
    applied = undisturbed.dvc("exp", "apply", "sweep-dllm")
    assert applied.returncode == 0, applied.stderr
    assert undisturbed.dvc("status").stdout.strip() == "Data and pipelines are up to date."
    evaluated = json.loads((undisturbed.root / "reports/evaluate.json").read_text())
    assert evaluated["sft"]["answers_nelbo"] == rows["sweep-dllm"]["metrics"][result["metric"]]
