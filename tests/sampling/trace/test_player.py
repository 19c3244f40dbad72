"""The player on a trace page: its own script, run by Node on a small DOM."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qwen3llada.sampling.sampler import SampleParams
from qwen3llada.sampling.trace.page import write_trace_page

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
DOM = Path(__file__).with_name("player_dom.js")
STEPS = 4


@pytest.fixture(scope="module")
def script(text, tmp_path_factory):
    """The script of a page with two answers, and the steps of their tokens."""
    folder, traces = tmp_path_factory.mktemp("page"), []
    params = SampleParams(steps=STEPS, gen_length=STEPS, block_length=STEPS)
    list(text.answers([[3, 5, 7], [1, 2]], params, seed=3, on_trace=traces.append))
    write_trace_page(folder / "page.html", traces, {"model": "some-model"})
    html = (folder / "page.html").read_text(encoding="utf-8")
    (folder / "script.js").write_text(re.search("<script>(.*)</script>", html, re.DOTALL)[1], encoding="utf-8")
    answers = [{"last": trace.steps, "steps": [decided.step for _, decided in trace.tokens]} for trace in traces]
    return folder / "script.js", answers


@pytest.fixture
def view(script):
    path, answers = script

    def run(*act, reduced=False, answers=answers):
        """What all answers show when the page opens, and after each call in `act`."""
        given = json.dumps({"answers": answers, "reduced": reduced, "act": act})
        done = subprocess.run(["node", DOM, path, given], capture_output=True, text=True, check=True, timeout=60)
        return json.loads(done.stdout)

    return run


def steps(states, answer):
    return [state[answer]["step"] for state in states]


def test_an_answer_opens_at_its_first_step_and_plays_once_when_it_is_seen(view, script):
    states = view(["seen", 0], *[["tick", 0]] * (STEPS + 2), ["seen", 0], ["tick", 0])
    assert steps(states, 0) == [0, 0, *range(1, STEPS + 1), *[STEPS] * 4]
    assert steps(states, 1) == [0] * len(states)  # not seen yet
    decided = script[1][0]["steps"]
    assert [state[0]["masked"] for state in states[1 : STEPS + 2]] == [
        sum(step > shown for step in decided) for shown in range(STEPS + 1)
    ]
    assert [states[i][0]["button"] for i in (0, 1, -1)] == ["Play", "Pause", "Play"]


def test_with_reduced_motion_an_answer_waits_for_its_button(view):
    states = view(["seen", 0], ["tick", 0], ["button", 0], ["tick", 0], ["tick", 0], reduced=True)
    assert steps(states, 0) == [0, 0, 0, 0, 1, 2]


def test_an_answer_that_somebody_has_moved_does_not_play_by_itself(view):
    states = view(["End", 1], ["seen", 1], ["tick", 0], ["ArrowLeft", 1], ["Home", 1], ["tick", 0])
    assert steps(states, 1) == [0, STEPS, STEPS, STEPS, STEPS - 1, 0, 0]
    assert states[1][1]["masked"] == 0


def test_an_answer_that_plays_by_itself_can_be_paused_and_goes_on(view):
    states = view(["seen", 0], ["tick", 0], ["button", 0], ["tick", 0], ["button", 0], ["tick", 0])
    assert steps(states, 0) == [0, 0, 1, 1, 1, 1, 2]


def test_a_revised_token_shows_what_stood_there_before(view):
    """The first token replaces one of step 1 in step 3; the second is masked again in step 2 and decided in step 4."""
    earlier = {"0": [[1, "a", 0.5]], "1": [[1, "b", 0.5], [2, None, 0]]}
    answer = {"last": 4, "steps": [3, 4, 2], "earlier": earlier}
    states = view(*[["ArrowRight", 0]] * 4, ["Home", 0], ["End", 0], answers=[answer])
    texts, revised = ([state[0][name] for state in states] for name in ("texts", "revised"))
    shown = [["▒", "▒", "▒"], ["a", "b", "▒"], ["a", "▒", "x"], ["x", "▒", "x"], ["x", "x", "x"]]
    assert texts == [*shown, shown[0], shown[4]]
    assert revised[:5] == [[False] * 3] * 2 + [[False, True, False]] + [[True, True, False]] * 2
