"""prefect.yaml and the Kubernetes template, as Prefect reads them."""

import asyncio
import inspect
import json
import re
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.environment import ROOT
from flows.serve import POOL

DEPLOYMENTS = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_a_deployment_fits_its_flow(deployment):
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.flows import load_flow_from_entrypoint

    flow = load_flow_from_entrypoint(str(ROOT / deployment["entrypoint"]))
    flow.validate_parameters(deployment.get("parameters", {}))
    assert set(deployment.get("parameters", {})) <= set(inspect.signature(flow.fn).parameters)
    assert deployment["work_pool"]["name"] == POOL
    for schedule in deployment.get("schedules", []):
        CronSchedule(**schedule)


def test_the_stages_that_deployments_name_are_there():
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    for deployment in DEPLOYMENTS:
        assert set(deployment.get("parameters", {}).get("stages", [])) <= set(stages)


def test_the_kubernetes_template_renders_to_a_job():
    from prefect.client.orchestration import PrefectClient
    from prefect.workers.base import BaseJobConfiguration

    class Configuration(BaseJobConfiguration):
        namespace: str
        job_manifest: dict[str, Any]

    template = json.loads((ROOT / "flows/kubernetes.json").read_text())
    given = {"image": "registry.example/qwen3llada:1", "gpus": 2, "claim": "data", "workspace": "/srv/llada"}
    nobody = PrefectClient("http://nowhere.invalid/api")  # it would be asked for blocks, and the template has none
    rendering = Configuration.from_template_and_values(template, given, client=nobody)
    manifest = asyncio.run(rendering).job_manifest
    spec = manifest["spec"]["template"]["spec"]
    container = spec["containers"][0]
    assert (manifest["apiVersion"], manifest["kind"], spec["restartPolicy"]) == ("batch/v1", "Job", "Never")
    assert (manifest["spec"]["completions"], manifest["spec"]["parallelism"]) == (1, 1)
    assert container["image"] == given["image"]
    assert container["workingDir"] == container["volumeMounts"][0]["mountPath"] == "/srv/llada"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert spec["volumes"][0]["persistentVolumeClaim"]["claimName"] == "data"
    assert {volume["name"] for volume in spec["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    assert "{{" not in json.dumps(manifest)
    # every variable is used, and every place has a variable
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    # the pod lives longer than a stage's default time to save
    from flows.graph import Policy

    assert spec["terminationGracePeriodSeconds"] > Policy().grace_seconds
