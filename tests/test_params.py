"""params.yaml and all parameter sets can be loaded, and params.yaml lists every knob."""

import difflib
import os
import re
import runpy
import signal
import sys
from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from flows.graph import Policy
from qwen3llada.commandline import ParamsError, merge, put_values, read_yaml, validated
from qwen3llada.evaluation.harness_request import HarnessRequest
from qwen3llada.params import Params, load, load_stage, run_as_stage, use
from qwen3llada.sampling.dialogue.ask import SampleRequest
from qwen3llada.sampling.dialogue.chat import ChatParams
from qwen3llada.section import OneOf, Section
from qwen3llada.training.params import AdapterParams

ROOT = Path(__file__).parents[1]
FILE = ROOT / "params.yaml"


def knobs(cls: type[BaseModel], prefix: str = "") -> set[str]:
    names = set()
    for name, field in cls.model_fields.items():
        key, kind = prefix + (field.alias or name), field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        names |= knobs(kind, f"{key}.") if nested else {key}
    return names


def leaves(tree: dict, prefix: str = "") -> set[str]:
    names = set()
    for key, value in tree.items():
        names |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return names


def test_params_yaml_holds_every_knob_once():
    assert leaves(read_yaml(FILE)) == knobs(Params)


@pytest.mark.parametrize("overlay", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_parameter_set_is_left_in_params_yaml(overlay):
    """`make use` writes into the file that is committed."""
    default = read_yaml(FILE)
    assert merge(default, read_yaml(overlay)) != default


def listed_in_comments(text: str) -> dict[str, list[str]]:
    """Knob -> the names that its comment lists, as in `key: value  # one | two: remark`."""
    found, keys = {}, []
    for line in text.splitlines():
        if not (match := re.match(r"( *)(\w+):", line)):
            continue
        keys[len(match[1]) // 2 :] = [match[2]]
        _, _, comment = line.partition(" # ")
        if " | " in comment:
            *first, last = comment.split(" | ")
            found[".".join(keys)] = [*first, last.split(": ")[0]]
    return found


def allowed_names(kind: Any, metadata: Iterable[Any] = ()) -> list[str]:
    """The names that a type allows, from `Literal` and `one_of`, at any depth."""
    names = [name for item in metadata if isinstance(item, OneOf) for name in item.names]
    if get_origin(kind) is Literal:
        return names + list(get_args(kind))
    return names + [name for part in get_args(kind) for name in allowed_names(part, getattr(part, "__metadata__", ()))]


def fields(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in cls.model_fields.items():
        kind, key = field.annotation, prefix + (field.alias or name)
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        yield from fields(kind, f"{key}.") if nested else [(key, field)]


def test_comments_list_all_names_that_a_knob_takes():
    allowed = {key: allowed_names(field.annotation, field.metadata) for key, field in fields(Params)}
    for knob, listed in listed_in_comments(FILE.read_text(encoding="utf-8")).items():
        if allowed[knob]:  # model.source and its like take any text
            assert [name for name in listed if re.fullmatch(r"\w+", name)] == allowed[knob], knob


def test_names_in_comments_are_read():
    text = "a:         # x | y\n  b: 1     # one | [more]: of them\n  c:       # a: b\nd: 1 # e | f\n"
    assert listed_in_comments(text) == {"a": ["x", "y"], "a.b": ["one", "[more]"], "d": ["e", "f"]}
    listed = listed_in_comments(FILE.read_text(encoding="utf-8"))
    assert listed["pretrain.telemetry.trackers"] == ["tensorboard", "wandb", "mlflow"]
    assert listed.keys() >= {"pretrain.noise.noise_type", "pretrain.attention.policy", "sample.remasking"}


def test_every_knob_is_explained():
    def unexplained(cls: type[BaseModel]) -> list[str]:
        missing = []
        for name, field in cls.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                missing += unexplained(kind)
            elif not field.description:
                missing.append(f"{cls.__name__}.{name}")
        return missing

    assert not unexplained(Params)


def numbers(cls: type[BaseModel]) -> Iterator[tuple[str, dict, list[dict]]]:
    """(dotted key, property, its numbers) of every numeric knob, from pydantic's JSON schema."""
    schema = cls.model_json_schema()

    def leaves_of(node: dict) -> Iterator[dict]:
        if node.get("type") in ("integer", "number"):
            yield node
        inner = node.get("additionalProperties")
        nested = [inner] if isinstance(inner, dict) else []
        items = node.get("items")
        nested += [*node.get("prefixItems", []), *node.get("anyOf", []), *([items] if isinstance(items, dict) else [])]
        for part in nested:
            yield from leaves_of(part)

    def sections(node: dict) -> Iterator[str]:
        if "$ref" in node:
            yield node["$ref"].rsplit("/", 1)[1]
        for key in ("items", "anyOf", "allOf", "additionalProperties"):
            value = node.get(key)
            for part in value if isinstance(value, list) else [value] if isinstance(value, dict) else []:
                yield from sections(part)

    def walk(node: dict, prefix: str) -> Iterator[tuple[str, dict, list[dict]]]:
        for key, value in node.get("properties", {}).items():
            found = list(leaves_of(value))
            if found:
                yield prefix + key, value, found
            for name in sections(value):
                yield from walk(schema["$defs"][name], f"{prefix}{key}.")

    yield from walk(schema, "")


def without_bounds(cls: type[BaseModel]) -> list[str]:
    def bounded(number: dict) -> bool:
        return all({side, f"exclusive{side.title()}"} & number.keys() for side in ("minimum", "maximum"))

    return [key for key, _, found in numbers(cls) if not all(bounded(number) for number in found)]


MODELS = [Params, SampleRequest, HarnessRequest, ChatParams, Policy]


def test_every_number_has_a_lower_and_an_upper_bound():
    assert len(list(numbers(Params))) > 100
    assert not [key for cls in MODELS for key in without_bounds(cls)]


def test_a_number_without_bounds_is_noticed():
    class Inner(Section):
        low: int = Field(0, ge=0)
        both: float = Field(0, ge=0, lt=1)

    class Bare(Section):
        inner: Inner = Inner()
        listed: list[Inner] = Field([])
        pair: tuple[float, float] = (0, 0)
        table: dict[str, int] = Field({})
        high: int | None = Field(None, le=3)

    assert without_bounds(Bare) == ["inner.low", "listed.low", "pair", "table", "high"]


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_bounds_stand_in_the_description(cls):
    def written(bound: float) -> str:
        if bound == 2**63:
            return "2^63"
        return f"{int(bound):,}" if bound == int(bound) and bound < 1e9 else f"{bound:g}"

    sides = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    unsaid = [
        f"{key}: {written(number[side])} not in {about.get('description')!r}"
        for key, about, found in numbers(cls)
        for number in found
        for side in sides
        if side in number
        and not re.search(rf"(?<![\d,.]){re.escape(written(number[side]))}(?![\d]|,\d)", about.get("description", ""))
    ]
    assert not unsaid


def put(key: str, value: Any) -> dict[str, Any]:
    *sections, last = key.split(".")
    tree = {last: value}
    for name in reversed(sections):
        tree = {name: tree}
    return tree


HUGE = int("9" * 39)
LISTED = (".mixture.", ".block_schedule.", ".rewards.")  # in a list of sections
KEYS = [key for key, _, _ in numbers(Params) if not any(name in key for name in LISTED)]


@pytest.mark.parametrize("value", [HUGE, -HUGE, float("inf"), float("nan"), True], ids=str)
def test_no_number_takes_what_is_beyond_all_sense(value):
    good = load(FILE).model_dump(by_alias=True)
    for key in KEYS:
        given = [value, value] if key.endswith((".betas", ".t_range")) else value
        with pytest.raises(ParamsError) as caught:
            validated(Params, merge(good, put(key, given)), "p.yaml")
        assert str(caught.value).startswith(f"p.yaml: {key}"), str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("seed: " + "9" * 39, ["seed", "allowed: 0 to below 2^63"]),
        ("seed: " + "9" * 5000, ["not valid YAML"]),
        ("sample: {steps: 300000000}", ["sample.steps", "given 300000000", "1 to 1,048,576"]),
        ("sample: {temperature: 1e308}", ["sample.temperature", "given 1e+308", "0 to 1,000,000"]),
        ("sample: {temperature: 1e400}", ["sample.temperature", "given inf", "finite", "0 to 1,000,000"]),
        ("sample: {temperature: .nan}", ["sample.temperature", "given nan", "finite"]),
        (
            "pretrain: {noise: {reweight_cap: 1e-320}}",
            ["pretrain.noise.reweight_cap", "given 1e-320", "0.001 to 1e+09"],
        ),
        ("pretrain: {max_grad_norm: 1e-320}", ["pretrain.max_grad_norm", "1e-320", "0 (never) or 1e-06"]),
        ("pretrain: {optim: {betas: [.nan, 0.9]}}", ["pretrain.optim.betas.0", "given nan", "0 to below 1"]),
        ("pretrain: {bf16: 1}", ["pretrain.bf16", "given 1", "true or false"]),
        ("pretrain: {bf16: yes}", ["pretrain.bf16", "given 'yes'", "true or false"]),
        ("pretrain: {epochs: true}", ["pretrain.epochs", "given True", "a number"]),
        ("convert: {mask_token: true}", ["convert.mask_token", "given True", "a number"]),
        ("pretrain_data: {name: mixture, mixture: [{name: a, weight: 0}, {name: b}]}", ["weight", "1e-06"]),
    ],
)
def test_a_wrong_number_in_a_file_is_one_line_that_names_it(tmp_path, line, words):
    path = tmp_path / "set.yaml"
    path.write_text(line + "\n")
    with pytest.raises(ParamsError) as caught:
        load(FILE, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert all(word in message for word in words), message
    assert len(message) - len(str(path)) < 400


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_parameter_set_loads(path):
    load(FILE, path)


# Knobs of training that affect neither learning nor its measurement: a set may leave them to params.yaml.
UNLEARNT = {
    *("model", "data", "dst", "output_dir", "reports", "save_steps", "save_total_limit", "resume_from"),
    *("bf16", "fp16", "param_dtype", "gradient_checkpointing", "compile", "cuda_graphs", "deterministic"),
    *("pad_to_multiple_of", "bucket", "num_workers", "logging_steps", "peak_tflops", "attention.implementation"),
    "telemetry.trackers",
    *(f"adapter.{name}" for name in AdapterParams.model_fields),
}


def unstated(overlay: Path) -> set[str]:
    """Knobs of learning that a set for the user's own model or text leaves at the built-in defaults."""
    params, stated = load(FILE, overlay), leaves(read_yaml(overlay))
    if {params.model.source, params.pretrain_data.name, params.sft_data.name} == {"builtin"}:
        return set()
    learnt = {f"eval_loss.{name}" for name in knobs(type(params.eval_loss))}
    for section in ("pretrain", "sft"):
        learnt |= {f"{section}.{name}" for name in knobs(type(getattr(params, section))) - UNLEARNT}
    return learnt - stated


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_sets_for_other_data_state_every_knob_of_learning(path):
    """The values in params.yaml are tuned to the built-in world and suit nothing else."""
    assert unstated(path) == set()


def test_a_knob_left_out_is_found(tmp_path):
    (tmp_path / "set.yaml").write_text("model: {source: some/model}\npretrain: {noise: {eps: 0.01}, max_steps: 3}\n")
    found = unstated(tmp_path / "set.yaml")
    assert {"pretrain.noise.min_masking_rate", "sft.noise.eps", "sft.optim.lr", "pretrain.eval_samples"} < found
    assert {"eval_loss.rounds", "sft.answer_padding", "pretrain.attention.policy"} < found
    assert not found & {"pretrain.noise.eps", "pretrain.max_steps", "pretrain.bf16", "sft.dst"}


@pytest.mark.parametrize(
    "path", [None, *sorted((ROOT / "configs").glob("*.yaml"))], ids=lambda path: path and path.stem
)
def test_all_stages_of_a_set_train_the_same_attention(path):
    """And the sampler and the measurements have a step for each block that an answer may touch."""
    params = load(FILE, path)
    attention = [section.attention for section in (params.pretrain, params.sft, params.rl)]
    assert len({(one.policy, one.block_length) for one in attention}) == 1
    block = params.sft.attention.block_length
    for decoding in (params.sample, params.rl.rollout):
        assert decoding.steps >= (decoding.gen_length + block - 2) // block + 1
    assert max(params.evaluate.tokens_per_step) <= block


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("qwen3-*.yaml")), ids=lambda path: path.stem)
def test_real_runs_see_every_noise_level(path):
    params = load(FILE, path)
    for section in (params.pretrain, params.sft):
        assert (section.noise.min_masking_rate, section.noise.eps) == (0.0, 1e-3)
        assert section.eval_samples > 64
    assert params.pretrain.noise.random_length_prob == 0.01


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("qwen3-*.yaml")), ids=lambda path: path.stem)
def test_real_runs_are_block_diffusion_from_pretraining_to_sampling(path):
    """Both sections alike: fine-tuning does not take over what the base model was pretrained with."""
    params = load(FILE, path)
    for section in (params.pretrain, params.sft):
        assert (section.attention.policy, section.attention.block_length) == ("block_causal", 32)
        assert section.noise.level == "auto"
        assert section.micro_batch_size * section.gradient_accumulation_steps == 128
    assert (params.sample.block_length, params.sample.block_attention) == (32, None)


def test_a_parameter_set_is_put_into_the_file_with_its_comments(tmp_path):
    path, overlay = tmp_path / "params.yaml", tmp_path / "set.yaml"
    path.write_bytes(FILE.read_bytes())
    overlay.write_text("seed: 7\npretrain: {noise: {schedule: cosine}}\n")
    use(overlay, path)
    params = load(path)
    assert (params.seed, params.pretrain.noise.schedule, params.sft.noise.schedule) == (7, "cosine", "uniform")
    assert "# every knob" in path.read_text().lower()


CHANGES = ["pretrain.max_steps=10", "sft.loss_impl=dllm", "validate.max_tokens=512", "sft.optim.betas=[0.9,0.98]"]
CHANGES += ["sample.block_attention=true", "pretrain.noise.reweight_cap=5.0", "validate.rules.length.mostly=0.9"]


def changed_lines(before: str, after: str) -> list[str]:
    """The lines that are in only one of the texts, marked as by `diff`."""
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line.startswith(("+", "-"))]


def with_dvc(path: Path, *overrides: str) -> str:
    """The result of `dvc exp run -S` on params.yaml."""
    from dvc.utils.hydra import apply_overrides

    path.write_bytes(FILE.read_bytes())
    apply_overrides(path, list(overrides))
    return path.read_text(encoding="utf-8")


def with_use(path: Path, text: str) -> str:
    """The result of `make use` on params.yaml, for a parameter set with this text."""
    path.write_bytes(FILE.read_bytes())
    path.with_name("set.yaml").write_text(text, encoding="utf-8")
    use(path.with_name("set.yaml"), path)
    return path.read_text(encoding="utf-8")


def test_the_file_has_the_form_that_dvc_writes(tmp_path):
    text = FILE.read_text(encoding="utf-8")
    assert with_dvc(tmp_path / "params.yaml") == text
    assert with_dvc(tmp_path / "params.yaml", "seed=0") == text


def test_each_changed_value_is_one_changed_line(tmp_path):
    """Both tools change the values, and both write the same."""
    written = with_dvc(tmp_path / "params.yaml", *CHANGES)
    lines = changed_lines(FILE.read_text(encoding="utf-8"), written)
    assert [line[0] for line in lines] == ["-", "+"] * len(CHANGES)
    over: dict[str, Any] = {}
    for key, value in (change.split("=") for change in CHANGES):
        over = merge(over, put(key, YAML(typ="safe", pure=True).load(value)))
    overlay = StringIO()
    YAML(typ="safe", pure=True).dump(over, overlay)
    assert with_use(tmp_path / "params.yaml", overlay.getvalue()) == written


def test_values_that_are_there_already_change_no_line(tmp_path):
    """For any notation in the set: 1.0e-8, 1e-8, a list in brackets, null."""
    text = "pretrain: {optim: {eps: 1e-8, betas: [0.9, 0.95]}, noise: {reweight_cap: null}, max_grad_norm: 1}"
    assert with_use(tmp_path / "params.yaml", text) == FILE.read_text(encoding="utf-8")


LISTS = re.findall(r"^( +)(\w+): *(#.*)?\n\1- ", FILE.read_text(encoding="utf-8"), re.MULTILINE)


def test_lists_with_a_comment_can_be_emptied(tmp_path):
    """ruamel.yaml would join lines further down, here `sample:` and its first knob."""
    path, text = tmp_path / "params.yaml", FILE.read_text(encoding="utf-8")
    path.write_text(re.sub(r"^( +)(\w+):.*\n(?=\1- )", r"\1\2:    # of the list\n", text, flags=re.MULTILINE))
    before, over = read_yaml(path), {}
    for key in {key for _, key, _ in LISTS}:
        assert emptied(before, key)
        over = merge(over, emptied(before, key))
    put_values(path, over)
    assert read_yaml(path) == merge(before, over)
    assert path.read_text().count("# of the list\n") == len(LISTS)


def emptied(tree: dict, name: str) -> dict:
    """The lists under `name` in `tree`, as a parameter set that makes them empty."""
    over = {key: emptied(value, name) for key, value in tree.items() if isinstance(value, dict)}
    over |= {key: [] for key, value in tree.items() if key == name and isinstance(value, list)}
    return {key: value for key, value in over.items() if value != {}}


def test_a_list_that_may_be_empty_has_no_comment_on_its_line():
    """`dvc exp run -S KEY=[]` would make params.yaml unreadable; DVC calls ruamel.yaml itself."""
    good = read_yaml(FILE)
    commented = {key for _, key, comment in LISTS if comment}
    assert commented >= {"t_range", "rewards"}
    for key in commented:
        with pytest.raises(ParamsError):
            validated(Params, merge(good, emptied(good, key)), "p.yaml")


SETS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("configs/*.yaml"))}
SETS["long"] = f"pretrain_data: {{name: {'my texts/' * 12}a.jsonl, heldout_fraction: 0.1}}"  # broken over two lines


@pytest.mark.parametrize("text", SETS.values(), ids=SETS)
def test_a_set_in_use_stays_as_it_is_when_dvc_writes(tmp_path, text):
    from dvc.utils.hydra import apply_overrides

    written = with_use(tmp_path / "params.yaml", text)
    apply_overrides(tmp_path / "params.yaml", ["report.samples=24"])
    assert (tmp_path / "params.yaml").read_text(encoding="utf-8") == written


@pytest.mark.parametrize("arguments", [[], ["configs/none.yaml"], ["configs/ci.yaml", "configs/gsm8k.yaml"]])
def test_without_a_parameter_set_the_line_says_what_to_give(arguments, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["params", *arguments])
    before = FILE.read_bytes()
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "qwen3llada/params.py"), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert "make use PARAMS=configs/NAME.yaml; there are configs/ci.yaml, configs/full-attention.yaml, " in line
    assert all(argument in line for argument in arguments)
    assert FILE.read_bytes() == before


def test_a_parameter_set_in_use_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes(FILE.read_bytes())
    monkeypatch.setattr(sys, "argv", ["params", str(ROOT / "configs/ci.yaml")])
    runpy.run_path(str(ROOT / "qwen3llada/params.py"), run_name="__main__")
    assert load(Path("params.yaml")) == load(FILE, ROOT / "configs/ci.yaml")
    said = f"params.yaml has the values of {ROOT}/configs/ci.yaml; git restore params.yaml undoes it\n"
    assert capsys.readouterr().out == said


def test_a_wrong_parameter_set_changes_nothing(tmp_path):
    path, overlay = tmp_path / "params.yaml", tmp_path / "set.yaml"
    path.write_bytes(FILE.read_bytes())
    overlay.write_text("pretrain: {noise: {schedule: cubic}}\n")
    with pytest.raises(ParamsError, match=r"pretrain\.noise\.schedule"):
        use(overlay, path)
    assert path.read_bytes() == FILE.read_bytes()


@pytest.mark.parametrize("flag", ["--params", "--params="])
def test_flags_of_a_stage_beat_the_parameter_set(flag, monkeypatch):
    monkeypatch.chdir(ROOT)
    chosen = ["--params", "configs/ci.yaml"] if flag == "--params" else ["--params=configs/ci.yaml"]
    params, _ = load_stage([*chosen, "--optim.lr", "0.5", "--seed", "3"], own="pretrain", shared=("seed",))
    assert (params.pretrain.optim.lr, params.seed, params.builtin.people) == (0.5, 3, 8)


@pytest.mark.parametrize("key", ["telemetry.trackers", "adapter.target_modules"])
@pytest.mark.parametrize("given", ['["mlflow", "wandb"]', "mlflow,wandb"])
def test_a_list_of_names_is_a_flag(key, given, monkeypatch):
    monkeypatch.chdir(ROOT)
    params, _ = load_stage(["--adapter.method", "lora", f"--{key}", given], own="sft", shared=("seed",))
    section, name = key.split(".")
    assert getattr(getattr(params.sft, section), name) == ("mlflow", "wandb")


def test_help_explains_knobs_with_their_present_values(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["stage", "--help"])
    with pytest.raises(SystemExit) as caught:
        load_stage(["--help"], own="sft", shared=("seed",), doc="Fine-tune.")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "Fine-tune." in text
    assert "--noise.schedule" in text
    assert "--params FILE" in text


LR = "QWEN3LLADA_PRETRAIN__OPTIM__LR"


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in [name for name in os.environ if name.startswith(("QWEN3LLADA_", "DVC_"))]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_variable_is_the_same_in_every_stage_and_is_printed(in_root, capsys):
    in_root.setenv(LR, "0.25")
    in_root.setenv("QWEN3LLADA_SEED", "7")
    own, _ = load_stage([], own="pretrain", shared=("seed",))
    assert (own.pretrain.optim.lr, own.seed) == (0.25, 7)
    lines = [f"environment: {LR}=0.25 sets pretrain.optim.lr", "environment: QWEN3LLADA_SEED=7 sets seed"]
    assert capsys.readouterr().err.splitlines() == lines
    shared, _ = load_stage(["--seed", "8"], own="eval_loss", shared=("seed", "pretrain"))
    assert (shared.pretrain.optim.lr, shared.seed) == (0.25, 8)


def test_a_variable_of_another_stage_is_said_to_have_no_effect(in_root, capsys):
    in_root.setenv(LR, "0.25")
    params, _ = load_stage([], own="sft")
    assert params == load(FILE)
    assert capsys.readouterr().err == f"environment: {LR} has no effect: this stage does not read pretrain\n"


API_KEY = "QWEN3LLADA_SERVE__API_KEY"


def test_a_secret_sets_its_knob_and_is_never_printed(in_root, capsys):
    in_root.setenv(API_KEY, "hidden-key")
    params, _ = load_stage([], own="serve")
    assert params.serve.api_key.get_secret_value() == "hidden-key"
    assert "hidden-key" not in f"{params!r} {params.model_dump(mode='json')}"
    assert capsys.readouterr().err == f"environment: {API_KEY} sets serve.api_key\n"
    with pytest.raises(SystemExit):
        load_stage(["--help"], own="serve")
    assert "hidden-key" not in capsys.readouterr().out
    params, _ = load_stage(["--api_key", "another-key"], own="serve")
    assert params.serve.api_key.get_secret_value() == "another-key"


def test_a_secret_of_the_wrong_type_is_refused_without_its_value(in_root, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("serve: {api_key: 123456}\n")
    with pytest.raises(ParamsError, match=r"serve\.api_key: input should be a valid string") as caught:
        load_stage(["--params", str(overlay)], own="serve")
    assert "123456" not in str(caught.value)
    for name, value in ((API_KEY, ""), ("QWEN3LLADA_SERVE__PORT", "x")):  # the key is good or bad, then another knob
        in_root.setenv(API_KEY, "hidden-key")
        in_root.setenv(name, value)
        with pytest.raises(ParamsError) as caught:
            load_stage([], own="serve")
        assert "hidden-key" not in str(caught.value)


def test_the_section_validate_has_its_name_of_the_file(in_root):
    in_root.setenv("QWEN3LLADA_VALIDATE__ON_INVALID", "quarantine")
    params, _ = load_stage([], own="validation")
    assert params.validation.on_invalid == "quarantine" != load(FILE).validation.on_invalid


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("QWEN3LLADA_PRETRAIN__OPTIM__LRR", f"did you mean {LR}?"),
        ("QWEN3LLADA_PRETRAIN__LR", "allowed: QWEN3LLADA_ and a knob's keys"),
        ("QWEN3LLADA_PRETRAIN", "allowed: QWEN3LLADA_ and a knob's keys"),
        ("qwen3llada_sed", "did you mean QWEN3LLADA_SEED?"),
    ],
)
def test_a_variable_that_is_no_knob_is_an_error(name, hint, in_root):
    in_root.setenv(name, "1")
    with pytest.raises(ParamsError) as caught:
        load_stage([], own="sft")
    assert f"environment: {name}: unknown variable" in str(caught.value)
    assert hint in str(caught.value)


def test_under_dvc_no_variable_changes_a_knob(in_root):
    in_root.setenv("DVC_STAGE", "pretrain")
    in_root.setenv("QWEN3LLADA_TRACEBACK", "1")
    params, _ = load_stage([], own="pretrain", shared=("seed",))
    assert params == load(FILE)
    in_root.setenv(LR, "0.25")
    with pytest.raises(ParamsError, match=f"{LR} must not be set while DVC runs the stage pretrain: dvc.lock"):
        load_stage([], own="pretrain", shared=("seed",))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_is_stopped_with_nothing_to_save_says_so_in_one_line(monkeypatch, capfd, number):
    def main(params):
        signal.raise_signal(number)

    monkeypatch.setattr(sys, "argv", ["stage"])
    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(SystemExit) as left:
            run_as_stage(main, own="convert")
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)
    assert left.value.code == 128 + number
    assert capfd.readouterr().err == f"stopped by {number.name}; what an earlier run has saved stays\n"


def test_a_file_that_is_missing_is_named_without_a_number_of_the_system(monkeypatch, capsys, tmp_path):
    def main(params):
        (tmp_path / "none.jsonl").read_text()

    monkeypatch.setattr(sys, "argv", ["stage"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as left:
            run_as_stage(main, own="convert")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/none.jsonl: No such file or directory\n"
