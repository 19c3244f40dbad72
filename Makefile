# Everything a user does starts here. Each target sets up what it needs; a second call costs nothing.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
# Named after the content of the lock: neither a checkout that touches the file nor a second call installs again.
READY := $(VENV)/.ready-$(shell sha256sum requirements.lock | cut -c1-16)

# Imported once at set-up, so that Python keeps the bytecode also where a later start may not write it, as in many
# containers: half a minute once, against that on every start. Compiling all packages would take minutes.
COMPILED := qwen3llada.modeling.modeling_qwen3llada, qwen3llada.sampling.dialogue.chat, qwen3llada.sampling.sampler, \
	qwen3llada.training.start.start, qwen3llada.corpus.validation.expectations, accelerate, great_expectations, \
	dvc.cli.parser, dvc.repo.index, dvc.data_cloud, scmrepo.git, prefect.cli, prefect.server.api.server, flows.pipeline, \
	dvc.commands.repro, dvc.commands.status, dvc.repo.reproduce, networkx, cyclopts, rich.markdown, flows.sweep

# Telemetry of every dependency is off, and nothing asks a server for a newer version of itself.
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export GX_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

# The tests of the flows wait for servers most of the time: with one process more than cores, others compute meanwhile.
TEST_PROCESSES := $(shell n=$$(( $$(getconf _NPROCESSORS_ONLN) + 1 )); echo $$(( n < 4 ? n : 4 )))

.PHONY: setup use repro rl docs test lint format bench serve lock clean

setup: $(READY)  ## make .venv from requirements.lock

# uv comes from the same lock (version and hash), then installs the rest.
$(READY):
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; name another with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c 'import $(COMPILED)'
	touch $@

use: setup  ## put a parameter set into params.yaml: make use PARAMS=configs/NAME.yaml (undo: git restore params.yaml)
	python -m qwen3llada.params $(PARAMS)

repro: setup  ## run every stage that is stale
	python -m qwen3llada.params --check  # dvc removes the outputs of a stage before the stage can look at them
	dvc repro

rl: setup  ## post-training on rewards, and what it needs of the stages before; make repro leaves it out
	python -m qwen3llada.params --check
	dvc repro post_training/dvc.yaml

docs: setup  ## after make repro: write the outputs and the picture in README.md and docs/ anew; docs/outputs.py says how
	python -m docs.outputs
	python -m docs.figures unmasking

# Bytecode may be written: the processes that the tests start import what no other target has compiled.
test: setup  ## the whole test suite, no network, no GPU; one process more than there are cores, up to four
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 python -m pytest tests --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

lint: setup  ## style and types
	ruff check .
	ruff format --check .
	mypy qwen3llada stages flows

format: setup
	ruff check --fix .
	ruff format .

bench: setup  ## side-by-side benchmarks; see docs/performance.md
	for part in batching loss sample train data validation; do python -m bench.$$part || exit; done

serve: setup  ## Prefect server, worker and deployments on this machine
	python -m flows.serve

lock:  ## after editing pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url --no-annotate --no-header -q --upgrade -o requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
