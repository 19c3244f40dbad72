"""What the flow reads from a real project."""

import pytest

from flows.graph import Policy, read_stages
from flows.outcome import StageFailedError
from flows.workspace import workspace

pytestmark = pytest.mark.timeout(900)  # where the machine is busy, the server takes minutes


def test_parameters_are_checked_before_the_first_stage(project):
    """Those in params.yaml, by the package's own command: dvc would remove outputs first, and fail then."""
    with workspace(None, []):
        pass
    project.set(rate=-0.1)
    said = "stage parameters: params.yaml: train.rate: must not be negative"
    with pytest.raises(StageFailedError, match=said), workspace(None, []):
        raise AssertionError("a stage would have run")


def test_stages_come_from_dvc_in_its_order(project):
    assert [stage.name for stage in read_stages([])] == ["prepare", "train", "measure"]
    assert [stage.name for stage in read_stages(["train"])] == ["prepare", "train"]
    only = read_stages(["measure", "train"], upstream=False)
    assert [stage.name for stage in only] == ["train", "measure"]
    assert only[0].policy == Policy(limit="gpu", retries=2, retry_seconds=0.1, grace_seconds=20)
    with pytest.raises(ValueError, match=r"dvc.yaml: .*nothing"):
        read_stages(["nothing"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"retires": 3}, "meta.flow.retires: given 3: Extra inputs are not permitted"),
        ({"retries": -1}, "meta.flow.retries: given -1: Input should be greater than or equal to 0"),
        ({"retry_seconds": 0}, "meta.flow.retry_seconds: given 0: Input should be greater than 0"),
        ({"retries": "many"}, "meta.flow.retries: given 'many': Input should be a valid integer"),
    ],
)
def test_wrong_policies_are_named(settings, said):
    from flows.graph import _stage

    with pytest.raises(ValueError, match=f"dvc.yaml: train: {said}"):
        _stage("train", settings)
