"""The card, and the upload to a hub that is played by the HTTP transport: nothing is connected to."""

import base64
import hashlib
import json
from pathlib import Path

import pytest

from qwen3llada.artifacts import mark
from qwen3llada.errors import InputError
from qwen3llada.params import load
from qwen3llada.serving.card_scores import card_of
from qwen3llada.serving.push import push

huggingface_hub = pytest.importorskip("huggingface_hub")
http = __import__("huggingface_hub.utils._http", fromlist=["_http"])
httpx = getattr(http, "httpx2", None) or http.httpx
ROOT = Path(__file__).parents[2]


class Hub:
    """The part of the hub's protocol that an upload uses; what was committed is in `files`."""

    def __init__(self):
        self.files, self.created, self.objects, self.refuse, self.cards = {}, [], {}, None, 0

    def __call__(self, request):
        path = request.url.path
        if path == "/org/name/resolve/main/README.md" and not self.refuse:
            card = self.files.get("README.md")
            if card is None:
                return httpx.Response(404, headers={"X-Error-Code": "EntryNotFound"}, request=request)
            headers = {"ETag": hashlib.sha256(card).hexdigest(), "X-Repo-Commit": "0" * 40}
            headers |= {"Content-Length": str(len(card))}
            return httpx.Response(200, headers=headers, content=card, request=request)
        if self.refuse == "unreachable":
            raise httpx.ConnectError("connection refused", request=request)
        if self.refuse:
            return httpx.Response(self.refuse, request=request)
        body = request.content
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return httpx.Response(200, json={"url": "https://huggingface.co/org/name"}, request=request)
        if path == "/api/validate-yaml":
            self.cards += 1
            return httpx.Response(200, json={"warnings": [], "errors": []}, request=request)
        if path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "shouldIgnore": False, "uploadMode": self.mode(file["path"])}
                for file in json.loads(body)["files"]
            ]
            return httpx.Response(200, json={"files": files}, request=request)
        if path.endswith("/info/lfs/objects/batch"):
            upload = {"upload": {"href": "https://huggingface.co/lfs/put"}}
            objects = [entry | {"actions": upload} for entry in json.loads(body)["objects"]]
            return httpx.Response(200, json={"transfer": "basic", "objects": objects}, request=request)
        if path == "/lfs/put":
            data = request.read()
            self.objects[hashlib.sha256(data).hexdigest()] = data
            return httpx.Response(200, request=request)
        assert path.endswith("/commit/main"), path
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
        done = {"commitUrl": "https://huggingface.co/org/name/commit/1", "commitOid": "1", "hookOutput": ""}
        return httpx.Response(200, json=done, request=request)

    @staticmethod
    def mode(path):
        return "lfs" if path.endswith(".safetensors") else "regular"


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    huggingface_hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(hub)))
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.set_client_factory(http.default_client_factory)
    huggingface_hub.close_session()


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "out/qwen3llada-sft"
    (folder / "custom_generate").mkdir(parents=True)
    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 1000, "block_length": 4, "mask_token_id": 7}
    config = {"model_type": "qwen3llada", "attention_policy": "block_causal", "prompt_template": "chat", **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "custom_generate/generate.py").write_text("pass\n")
    mark(folder)
    (folder / "notes.txt").write_text("private")  # by the user, later
    return folder


def test_model_card_and_export_are_one_commit(hub, model, tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    (served / "config.json").write_text("{}")
    mark(served)
    url = push("org/name", model, "# card\n", export=served)
    assert url == "https://huggingface.co/org/name/commit/1"
    assert {name: hub.files[name] for name in ("README.md", "sdar/config.json", "model.safetensors")} == {
        "README.md": b"# card\n",
        "sdar/config.json": b"{}",
        "model.safetensors": b"weights" * 100,
    }
    assert {"config.json", "custom_generate/generate.py"} < set(hub.files)
    assert not [name for name in hub.files if "notes" in name or "qwen3llada.json" in name]
    assert (hub.created[0]["name"], hub.created[0]["visibility"]) == ("name", "private")


@pytest.mark.parametrize(
    ("refuse", "error", "message"),
    [
        (401, InputError, r"org/name: may not be written to \(401\); log in"),
        (403, InputError, r"org/name: may not be written to \(403\)"),
        ("unreachable", OSError, "org/name: the hub cannot be reached"),
    ],
)
def test_a_hub_that_refuses_is_one_clear_line(hub, model, refuse, error, message):
    hub.refuse = refuse
    with pytest.raises(error, match=message) as caught:
        push("org/name", model, "card")
    assert "\n" not in str(caught.value)
    assert hub.files == {}


def test_nothing_is_uploaded_that_is_not_whole_and_ours(hub, model, tmp_path):
    with pytest.raises(InputError, match="repo='name' must be OWNER/NAME"):
        push("name", model, "card")
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="was not written by this project"):
        push("org/name", model, "card", export=tmp_path / "other")
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        push("org/name", model, "card")
    assert (hub.files, hub.created) == ({}, [])


@pytest.fixture
def run(model, tmp_path):
    """Parameters of a run that made that model, and what its stages wrote."""
    parameters = load(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    parameters["sft"] |= {"dst": str(model), "loss_impl": "dllm"}
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "reports").mkdir()
    source = {"model": {"source": "Qwen/Qwen3-0.6B-Base", "revision": "abc", "licence": "Apache-2.0", "files": {}}}
    source |= {"text": {"source": "org/texts", "revision": "def", "licence": None, "files": {}}}
    source |= {"conversations": {"source": "my/chats.jsonl", "revision": None, "licence": "mit", "files": {}}}
    (tmp_path / "data/raw/SOURCE.json").write_text(json.dumps(source))
    (tmp_path / "reports/evaluate.json").write_text('{"sft": {"answers_nelbo": 0.5573, "answers_nelbo_error": 0.0642}}')
    (tmp_path / "reports/sample.json").write_text('{"exact_match": 0.25}')
    (tmp_path / "reports/eval_loss.json").write_text('{"sft": {"dllm": 1.5}, "pretrain": {"dllm": 9.5}}')
    return parameters


@pytest.fixture
def stage(model, tmp_path, monkeypatch):
    """The stage with these flags, in a folder with params.yaml: its status and its last line on stderr."""
    import stages.push
    from qwen3llada.params import run_as_stage
    from qwen3llada.serving.params import PushRequest

    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())

    def call(*flags):
        monkeypatch.setattr("sys.argv", ["push", "--folder", str(model), *map(str, flags)])
        with pytest.raises(SystemExit) as ended:
            run_as_stage(stages.push.main, shared=("seed", "pretrain", "sft"), request=PushRequest)
        return ended.value.code

    return call


def test_a_card_replaces_cards_alone(stage, tmp_path, capsys):
    for name in ("params.yaml", "notes.md"):
        (tmp_path / name).touch()
        (tmp_path / "notes.md").write_text("mine")
        before = (tmp_path / name).read_bytes()
        assert stage("--card", name) == 1
        assert f"card='{name}' exists and is no model card of this project; give a new" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == before
    assert [stage("--card", "CARD.md") for _ in range(2)] == [0, 0]
    assert (tmp_path / "CARD.md").read_text().startswith("---\nlibrary_name")


@pytest.mark.parametrize("flags", [("--public",), ("--replace_card",), ("--export", "out/served")], ids=str)
def test_flags_of_an_upload_do_not_go_with_a_card(stage, tmp_path, capsys, flags):
    assert stage("--card", "CARD.md", *flags) == 2
    assert f"{flags[0][2:]} must not be combined with card" in capsys.readouterr().err
    assert not (tmp_path / "CARD.md").exists()


def test_a_card_says_base_data_recipe_scores_and_limits(run, model, tmp_path):
    card = card_of(model, run, tmp_path)
    assert card.startswith("---\nlibrary_name: transformers\n")
    for line in (
        "license: apache-2.0",
        'base_model: "Qwen/Qwen3-0.6B-Base"',
        "| base model | Qwen/Qwen3-0.6B-Base | abc | Apache-2.0 |",
        "| text | org/texts | def | unknown |",
        "| conversations | my/chats.jsonl | – | mit |",
        "### Pretraining on text",
        "| `loss_impl` | guidelines |",
        "### Fine-tuning on conversations",
        "| `loss_impl` | dllm |",
        "| NELBO of held-out answers, nats a token | 0.557 ± 0.064 | `python -m stages.evaluate` |",
        "| held-out questions answered word for word | 0.250 | `python -m stages.sample` |",
        "| held-out loss `dllm`, nats | 1.500 | `python -m stages.eval_loss` |",
        "- attention policy: `block_causal`, blocks of 4 tokens",
        "## Limits",
    ):
        assert line in card.splitlines(), line
    assert "9.5" not in card


def test_a_score_without_a_standard_error_stands_alone(run, model, tmp_path):
    (tmp_path / "reports/evaluate.json").write_text('{"sft": {"answers_nelbo": 0.5573, "answers_nelbo_error": null}}')
    assert "| NELBO of held-out answers, nats a token | 0.557 | `python" in card_of(model, run, tmp_path)


def test_a_card_of_another_model_claims_nothing(run, model, tmp_path):
    run["sft"]["dst"] = "elsewhere"
    card = card_of(model, run, tmp_path)
    assert "Not recorded" in card
    assert "Converted, not trained by this project." in card
    assert "None measured." in card


def test_a_fine_tuning_of_another_base_claims_no_pretraining(run, model, tmp_path):
    run["sft"]["model"] = "elsewhere"
    assert "Pretraining" not in card_of(model, run, tmp_path)


def test_an_edited_card_keeps_its_words_and_gets_the_scores(run, model, tmp_path):
    before = card_of(model, run, tmp_path)
    edited = before.replace("## Limits", "## Thanks\n\nTo Ada.\n\n## Limits").replace("0.250", "0.999")
    (model / "README.md").write_text(edited)
    card = card_of(model, run, tmp_path)
    assert "To Ada." in card
    assert card == edited.replace("0.999", "0.250")  # what is measured is renewed, nothing else
    (model / "README.md").write_text("# All my own\n")
    assert card_of(model, run, tmp_path) == "# All my own\n"


def test_a_card_that_was_edited_on_the_hub_stays(hub, run, model, tmp_path):
    card = card_of(model, run, tmp_path)
    push("org/name", model, card)
    assert hub.files["README.md"].decode() == card
    theirs = card.replace("## Limits", "## Edited there\n\n## Limits")
    hub.files["README.md"] = theirs.encode()
    newer = card.replace("0.250", "0.750")
    push("org/name", model, newer)
    assert hub.files["README.md"].decode() == theirs.replace("0.250", "0.750")
    hub.files["README.md"] = b"# mine\n"
    push("org/name", model, newer)
    assert hub.files["README.md"] == b"# mine\n"
    push("org/name", model, newer, replace_card=True)
    assert hub.files["README.md"].decode() == newer
