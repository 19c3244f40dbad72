"""All parameters: the sections composed, and read from YAML, environment and command line. Imported only by stages.

A stage sees all of `params.yaml`. The keys of its own section are plain flags (`--loss_impl dllm`,
`--noise.schedule cosine`); shared sections that it reads are prefixed (`--pretrain_data.num_proc 4`).
Priority, lowest first: params.yaml, the parameter set given by `--params`, environment (`QWEN3LLADA_…`), command line.
Values from the environment are printed, except secrets. Under DVC the environment must not set any (see
`knob_variables.py`).
"""

import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ConfigDict, Field

from qwen3llada.commandline import (
    ParamsError,
    merge,
    parse_environment,
    parse_flags,
    put_values,
    read_yaml,
    refuse_unread,
    validated,
    with_default,
)
from qwen3llada.corpus.builtin.params import BuiltinParams
from qwen3llada.corpus.fetch.sources import ConversationData, ModelSource, TextData, check_sources
from qwen3llada.corpus.validation.rules import ValidateParams
from qwen3llada.destinations import MODEL, check_destinations
from qwen3llada.errors import InputError
from qwen3llada.evaluation.params import EvalLossParams, EvaluateParams
from qwen3llada.knob_variables import PREFIX, TRACEBACK, announce, knob_variables
from qwen3llada.modeling.convert import ConvertParams
from qwen3llada.post_training.params import RlParams
from qwen3llada.report.params import ReportParams
from qwen3llada.sampling.params import SampleParams
from qwen3llada.section import Section
from qwen3llada.serving.params import ExportParams, ServeParams
from qwen3llada.tracked import Request, changed, check_inputs, check_tracked
from qwen3llada.training.params import PretrainParams, SftParams
from qwen3llada.training.start.claiming import check_training

PARAMS_FILE = Path("params.yaml")


class Params(Section):
    """All of `params.yaml`."""

    model_config = ConfigDict(populate_by_name=True)

    seed: int = Field(ge=0, lt=2**63, description="Seed of training, noise, evaluation and sampling; 0 to below 2^63")
    builtin: BuiltinParams
    model: ModelSource
    pretrain_data: TextData
    sft_data: ConversationData
    convert: ConvertParams
    validation: ValidateParams = Field(alias="validate")  # pydantic reserves the name `validate`
    pretrain: PretrainParams
    sft: SftParams
    rl: RlParams
    eval_loss: EvalLossParams
    evaluate: EvaluateParams
    sample: SampleParams
    report: ReportParams
    export: ExportParams
    serve: ServeParams


def load(path: Path = PARAMS_FILE, overlay: Path | None = None) -> Params:
    """`Params` from `path`, overridden by the parameter set `overlay`. Raises `ParamsError` in one line."""
    tree, where = read_yaml(path), path
    if overlay is not None and overlay.resolve() != path.resolve():
        tree, where = merge(tree, read_yaml(overlay)), overlay
    return validated(Params, tree, str(where))


def use(overlay: Path, path: Path = PARAMS_FILE) -> None:
    """Write the values of the parameter set `overlay` to `path`. Comments, order and other lines stay the same.

    Writes nothing unless the result is valid. `git restore params.yaml` undoes it. Raises: `ParamsError`.
    """
    if not overlay.is_file():
        raise ParamsError(f"{overlay}: no such parameter file; {_sets_there_are()}")
    load(path, overlay)
    put_values(path, read_yaml(overlay))


def _sets_there_are() -> str:
    """For errors: the usage of `make use`, and the sets in configs/."""
    found = ", ".join(file.as_posix() for file in sorted(Path("configs").glob("*.yaml"))) or "none in configs/"
    return f"give a parameter set, as make use PARAMS=configs/NAME.yaml; there are {found}"


def check(path: Path = PARAMS_FILE) -> None:
    """Check parameters, destinations and sources before DVC, which removes a stage's outputs before starting it.

    Raises: `ParamsError`; InputError naming a knob whose folder this project must not replace, or whose source is not
        there although `download` would read it.
    """
    params = load(path)
    check_destinations({"convert.dst": (params.convert.dst, MODEL)}, {"convert.src": params.convert.src})
    check_training(params.pretrain, "pretrain.")
    check_training(params.sft, "sft.")
    check_training(params.rl, "rl.")
    if changed("download", _tree(params)):
        check_sources(params.model, params.pretrain_data, params.sft_data)


def load_stage(
    argv: Sequence[str],
    *,
    own: str | None = None,
    shared: Sequence[str] = (),
    request: type[Request] = Request,
    doc: str = "",
) -> tuple[Params, Any]:
    """The parameters and the request of one call of a stage.

    Args:
        argv: the command line without the program's name.
        own: name of the section whose keys are plain flags, or None.
        shared: names of other entries of `Params` that the stage reads.
        request: flags of this call that are not in params.yaml (--force, a prompt, an output file).
        doc: text above the flags in `--help`.

    Returns: the parameters with all overrides, and the `request`.
    Raises: `ParamsError` in one line with the source, the key, what was given and what is allowed.
    """
    overlay, rest = _take_params_flag(list(argv))
    base = _from_environment(load(PARAMS_FILE, overlay), [*([own] if own else []), *shared])
    section = getattr(base, own) if own else None
    fields = {name: with_default(section, name) for name in type(section).model_fields} if section else {}
    fields |= {name: with_default(base, name) for name in shared}
    fields |= {name: (field.annotation, field) for name, field in request.model_fields.items()}
    doc = f"{doc.strip()}\n\n--params FILE puts a parameter set (configs/…) on top of {PARAMS_FILE}."
    given = parse_flags(fields, rest, doc=doc)

    tree = base.model_dump(by_alias=True)
    if section is not None:
        tree[_key(own)] = {name: given[name] for name in type(section).model_fields}
    tree |= {_key(name): given[name] for name in shared}
    asked = validated(request, {name: given[name] for name in request.model_fields}, "command line")
    refuse_unread(fields, rest, asked.unread())
    return validated(Params, tree, "command line"), asked


def run_as_stage(
    main: Callable[..., None],
    *,
    own: str | None = None,
    shared: Sequence[str] = (),
    request: type[Request] = Request,
) -> NoReturn:
    """Entry point of a stage: read the parameters, call `main(params)` or `main(params, request)`, exit with a status.

    `main` gets a request if the stage has its own request class. `check_inputs` and `check_tracked` run before `main`.

    Status 2: parameters; 1: input or output; 130, 143: stopped by Ctrl-C, SIGTERM (each with one line on stderr); 75:
    stopped, a checkpoint is saved. A defect of the program gives a traceback. `QWEN3LLADA_TRACEBACK=1` shows where a
    one-line error was raised.
    """
    # The parent may have SIGTERM ignored, which is inherited. A stage must stop on it and clean up.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        doc = sys.modules[main.__module__].__doc__ or ""
        params, asked = load_stage(sys.argv[1:], own=own, shared=shared, request=request, doc=doc)
    except ParamsError as error:
        sys.exit(_complain(error, 2))
    try:
        stage, used = Path(inspect.getfile(main)).stem, _tree(params)
        check_inputs(stage, used, asked)
        check_tracked(stage, own and _key(own), used, _tree(load()), asked)
        main(params) if request is Request else main(params, asked)
    except KeyboardInterrupt:
        _terminate(signal.SIGINT)
    except (InputError, OSError) as error:
        sys.exit(_complain(error, 1))
    sys.exit(0)


def _tree(params: Params) -> dict[str, Any]:
    return params.model_dump(mode="json", by_alias=True)


def _terminate(signum: int, frame: object = None) -> NoReturn:
    said = f"stopped by {signal.Signals(signum).name}; what an earlier run has saved stays\n"
    os.write(2, said.encode())  # not print: the signal may have interrupted one
    raise SystemExit(128 + signum)


def _complain(error: Exception, status: int) -> int:
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    print(f"error: {' '.join(said.split())}", file=sys.stderr)
    return status


def _from_environment(base: Params, read: Sequence[str]) -> Params:
    """`base` with the environment's values for the entries in `read`. Raises `ParamsError`."""
    variables = knob_variables(Params, os.environ)
    announce(variables, os.environ, [_key(name) for name in read])
    tree, set_ = base.model_dump(by_alias=True), {knob.keys[0] for knob in variables}
    for name in read:
        entry = getattr(base, name)
        if _key(name) not in set_:
            continue
        if isinstance(entry, Section):
            fields = {key: with_default(entry, key) for key in type(entry).model_fields}
            tree[_key(name)] = parse_environment(fields, f"{PREFIX}{_key(name)}__".upper())
        else:
            tree |= parse_environment({name: with_default(base, name)}, PREFIX)
    return validated(Params, tree, "environment")


def _key(name: str | None) -> str:
    """The name of a field of `Params` in the file."""
    assert name is not None
    return Params.model_fields[name].alias or name


def _take_params_flag(argv: list[str]) -> tuple[Path | None, list[str]]:
    """The value of `--params` (either spelling), and the other arguments."""
    for i, argument in enumerate(argv):
        if argument == "--params":
            if i + 1 == len(argv):
                raise ParamsError("command line: --params: expected the path of a parameter set")
            return Path(argv[i + 1]), argv[:i] + argv[i + 2 :]
        if argument.startswith("--params="):
            return Path(argument.removeprefix("--params=")), argv[:i] + argv[i + 1 :]
    return None, argv


if __name__ == "__main__":
    try:
        if len(sys.argv) != 2:
            raise ParamsError(f"{_sets_there_are()}" + (f"; given {sys.argv[1:]}" if sys.argv[1:] else ""))
        if sys.argv[1] == "--check":
            check()
        else:
            use(Path(sys.argv[1]))
            print(f"{PARAMS_FILE} has the values of {sys.argv[1]}; git restore {PARAMS_FILE} undoes it")
    except (InputError, OSError) as error:
        sys.exit(_complain(error, 2))
