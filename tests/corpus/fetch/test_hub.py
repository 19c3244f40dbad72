"""Models and data sets of a hub mocked at the HTTP transport: no connection is made."""

import hashlib
import json
import re
from urllib.parse import unquote

import pytest

from qwen3llada.corpus.builtin.params import BuiltinParams
from qwen3llada.corpus.fetch.download import download, fetch_model
from qwen3llada.corpus.fetch.shard_list import write_stream
from qwen3llada.corpus.fetch.sources import ConversationData, ModelSource, TextData
from qwen3llada.corpus.files.reading import data_files, read_blocks
from qwen3llada.corpus.text.text_stream import RUN, TextStream

huggingface_hub = pytest.importorskip("huggingface_hub")
http = __import__("huggingface_hub.utils._http", fromlist=["_http"])
httpx = getattr(http, "httpx2", None) or http.httpx

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = ("safetensors", "parquet")


class Hub:
    """The part of the hub's protocol that is used here, over in-memory repositories."""

    def __init__(self):
        self.repositories = {}  # (kind, name) -> {path: content}
        self.requests = []
        self.down = False
        self.tamper = None  # a path whose content is changed on the way
        self.cut = None  # a path whose first transfer is cut off in the middle
        self.ranges = []  # requested byte ranges

    def add(self, kind, name, files):
        self.repositories[kind, name] = {
            path: data.encode() if isinstance(data, str) else data for path, data in files.items()
        }

    def __call__(self, request):
        path = unquote(request.url.path)
        self.requests.append((request.method, path))
        if self.down:
            raise httpx.ConnectError("connection refused", request=request)
        for (kind, name), files in self.repositories.items():
            prefix = f"/{name}/resolve/" if kind == "model" else f"/datasets/{name}/resolve/"
            if path.startswith(prefix):
                revision, _, file = path.removeprefix(prefix).partition("/")
                return self.file(request, files, revision, file)
            api = f"/api/{kind}s/{name}"
            if path == api or path.startswith(api + "/"):
                return self.api(request, kind, name, files, path.removeprefix(api).strip("/"))
        return httpx.Response(404, headers={"X-Error-Code": "RepoNotFound"}, request=request)

    def file(self, request, files, revision, file):
        if revision not in (COMMIT, "main"):
            return httpx.Response(404, headers={"X-Error-Code": "RevisionNotFound"}, request=request)
        if file not in files:
            return httpx.Response(
                404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, request=request
            )
        data = files[file]
        if file == self.tamper:
            data = bytes(reversed(data))
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{self.entry(files, file)["oid"]}"', "Accept-Ranges": "bytes"}
        if file.endswith(LARGE):
            headers |= {
                "X-Linked-Etag": f'"{hashlib.sha256(files[file]).hexdigest()}"',
                "X-Linked-Size": str(len(data)),
            }
        if request.method == "HEAD":
            return httpx.Response(200, headers=headers | {"Content-Length": str(len(data))}, request=request)
        status, part = 200, request.headers.get("Range")
        if part and (start := int(re.fullmatch(r"bytes=(\d+)-.*", part)[1])):
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status, data = 206, data[start:]
            self.ranges.append(part)
        elif file == self.cut:
            return httpx.Response(status, headers=headers, content=self.half(request, data), request=request)
        return httpx.Response(status, headers=headers, content=data, request=request)

    @staticmethod
    def half(request, data):
        yield data[: len(data) // 2]
        raise httpx.RemoteProtocolError("peer closed connection", request=request)

    def api(self, request, kind, name, files, rest):
        what, _, rest = rest.partition("/")
        revision, _, folder = rest.partition("/")
        if what in ("revision", "tree", "paths-info") and revision not in ("main", COMMIT):
            return httpx.Response(404, headers={"X-Error-Code": "RevisionNotFound"}, request=request)
        if what in ("", "revision"):
            siblings = [self.sibling(files, path) for path in files]
            card = {"license": "mit"}
            body = {
                "id": name,
                "_id": "1",
                "sha": COMMIT,
                "siblings": siblings,
                "cardData": card,
                "tags": [],
                "private": False,
            }
            return httpx.Response(200, json=body | {"gated": False, "downloads": 0, "likes": 0}, request=request)
        if what == "tree":
            entries = [self.entry(files, path) for path in files if path.startswith(folder)]
            folders = {path.rpartition("/")[0] for path in files if "/" in path and path.startswith(folder)} - {folder}
            entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
            return httpx.Response(200, json=entries, request=request)
        if what == "paths-info":
            asked = json.loads(request.content)["paths"] if b"{" in request.content else []
            return httpx.Response(
                200, json=[self.entry(files, path) for path in asked if path in files], request=request
            )
        return httpx.Response(404, headers={"X-Error-Code": "EntryNotFound"}, request=request)

    def sibling(self, files, path):
        entry = self.entry(files, path)
        lfs = (
            {"lfs": {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 134}}
            if "lfs" in entry
            else {}
        )
        return {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]} | lfs

    def entry(self, files, path):
        data = files[path]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry = {"type": "file", "path": path, "size": len(data), "oid": blob}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry


@pytest.fixture
def hub(monkeypatch, tmp_path):
    import datasets

    hub = Hub()
    hub.add(
        "model",
        "org/tiny",
        {"config.json": "{}", "model.safetensors": "weights", "pytorch_model.bin": "x", "a/b.json": "{}"},
    )
    rows = {"train": [f"text {i}" for i in range(50)], "test": ["held out"]}
    hub.add(
        "dataset",
        "org/texts",
        {f"data/{split}.jsonl": "".join(json.dumps({"text": t}) + "\n" for t in texts) for split, texts in rows.items()}
        | {"README.md": "---\nlicense: mit\n---\n"},
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.setattr(datasets.config, name, str(tmp_path / name))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(hub), follow_redirects=False))
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.set_client_factory(http.default_client_factory)
    huggingface_hub.close_session()


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}", "answer": "a"}) + "\n" for i in range(40)))
    return ConversationData(name=str(path), heldout_fraction=0.5)


def texts(folder):
    return [row.value["text"] for file in data_files(folder) for block in read_blocks(file) for row in block.rows()]


def test_a_model_and_a_data_set_of_the_hub_land_with_their_commit(tmp_path, hub, chats):
    text = TextData(name="org/texts", split="train[:20%]", heldout_split="test")
    raw = tmp_path / "raw"
    record = download(raw, model=ModelSource(source="org/tiny"), text=text, conversations=chats, world=BuiltinParams())
    assert sorted(path.name for path in (raw / "model").iterdir()) == ["config.json", "model.safetensors"]
    assert (raw / "model" / "model.safetensors").read_text() == "weights"
    assert texts(raw / "text" / "train") == [f"text {i}" for i in range(10)]
    assert texts(raw / "text" / "heldout") == ["held out"]
    for name in ("model", "text"):
        assert record[name]["revision"] == COMMIT
        assert record[name]["licence"] == "mit"
    fetched = {path for method, path in hub.requests if method == "GET" and "/resolve/" in path}
    assert not any(path.endswith((".bin", "a/b.json")) for path in fetched)


def test_a_second_download_takes_the_files_from_the_cache(hub):
    first = fetch_model("org/tiny")
    hub.requests.clear()
    assert fetch_model("org/tiny", COMMIT) == first
    assert not [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]


def test_a_transfer_that_breaks_off_goes_on_where_it_ended(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1)  # the default is larger than the file
    hub.cut = "model.safetensors"
    folder = fetch_model("org/tiny")
    assert (folder / "model.safetensors").read_text() == "weights"
    assert hub.ranges == ["bytes=3-"]


def test_shards_of_the_hub_are_fetched_when_they_are_read(tmp_path, hub, chats, tokenizer):
    shards = {f"data/train-{i}.jsonl": json.dumps({"text": f"shard {i} " * 40}) + "\n" for i in range(3)}
    hub.add("dataset", "org/shards", shards | {"data/test.jsonl": '{"text": "held out"}\n'})
    text = TextData(name="org/shards", heldout_split="test", streaming=True)
    raw = tmp_path / "raw"
    record = download(raw, model=ModelSource(source="org/tiny"), text=text, conversations=chats, world=BuiltinParams())
    assert (record["text"]["revision"], record["text"]["streaming"]) == (COMMIT, True)
    assert texts(raw / "text" / "heldout") == ["held out"]

    def fetched():
        return [path for method, path in hub.requests if method == "GET" and "/data/train" in path]

    assert not fetched()
    write_stream(raw / "text/train", tmp_path / "out", tokenizer, text, max_length=8)
    stream = TextStream(tmp_path / "out", tokenizer)
    second = range(RUN, 2 * RUN)  # positions that come from the second shard
    tokens = [i for sample in stream.read(iter(second), {}) for i in sample.tokens.tolist()]
    assert tokenizer.decode(tokens).startswith("shard 1 ")
    assert [path.rpartition("/")[2] for path in fetched()] == ["train-0.jsonl", "train-1.jsonl"]  # 0: for the column
    hub.tamper = "data/train-2.jsonl"
    with pytest.raises(ValueError, match=r"as downloaded .* is not what the hub has"):
        next(stream.read(iter([2 * RUN]), {}))


def test_files_that_are_not_what_the_hub_says_are_refused(hub, tmp_path, chats):
    hub.tamper = "model.safetensors"
    with pytest.raises(ValueError, match=r"org/tiny: model\.safetensors as downloaded .* is not what the hub has"):
        fetch_model("org/tiny")


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        ("org/nothing", None, "org/nothing: neither a local path nor a public repository of the hub"),
        ("org/tiny", "v9", "org/tiny: no revision='v9' on the hub"),
    ],
)
def test_what_is_not_on_the_hub_is_one_clear_line(hub, source, revision, message):
    with pytest.raises(ValueError, match=message) as caught:
        fetch_model(source, revision)
    assert "\n" not in str(caught.value)


def test_splits_and_configurations_that_do_not_exist_are_named(hub, tmp_path, chats):
    def run(**knobs):
        text = TextData(name="org/texts", heldout_fraction=0.1, **knobs)
        model = ModelSource(source="org/tiny")
        download(tmp_path / "raw", model=model, text=text, conversations=chats, world=BuiltinParams())

    with pytest.raises(ValueError, match="org/texts: no split='valid'; it has train, test"):
        run(split="valid")
    with pytest.raises(ValueError, match=r"org/texts at .*'german' not found"):
        run(config="german")
    assert not (tmp_path / "raw").exists()


def test_a_hub_out_of_reach_is_an_error_of_the_system(hub, monkeypatch):
    hub.down = True
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(OSError, match="org/tiny: the hub cannot be reached"):
        fetch_model("org/tiny")
