# Each target is one command, which also works alone with --help. Stages skip what is finished by the manifests they
# wrote: a changed recipe section makes only what depends on it again. `make` lists the targets.
#
#   make demo                                     the whole river in ten minutes
#   make pretrain RECIPE=configs/node.yaml ARGS="train.learning_rate=2e-4 launch.processes=8"
#   make PYTHON=python3 test-gpu                  with an environment of your own, no .venv

RECIPE ?= configs/demo.yaml
ARGS ?=
SLURM_TESTS ?= slow or not slow
BASE_PYTHON ?= $(firstword $(foreach p,python3.12 python3.11 python3,$(shell $(p) -c 'import sys; print("$(p)" if (3,11) <= sys.version_info < (3,13) else "")' 2>/dev/null)))

VENV := .venv
ifeq ($(origin PYTHON),undefined)
PYTHON := $(VENV)/bin/python
SETUP := $(VENV)/.ready
endif

# With WHEELHOUSE=FOLDER, setup takes everything from there and asks no network.
OFFLINE := $(if $(WHEELHOUSE),--no-index --find-links=$(WHEELHOUSE))

export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.cache/torch_extensions
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.DEFAULT_GOAL := help
.PHONY: help setup wheelhouse demo test test-engine test-gpu check data tokenizer examples pretrain finetune evaluate generate compare export from import report estimate inspect verify stats ingest slurm slurm-data test-parity test-recovery test-launch test-slurm bench-data bench-memory bench-model bench-engine bench-estimate bench-gpu clean lock

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18
	@echo; echo "  RECIPE=configs/….yaml (now $(RECIPE)), ARGS=\"section.key=value …\", PYTHON=python3 for an environment of your own"

setup: $(SETUP)  ## make .venv with every pinned package; skipped when nothing changed

# torch first and by its exact pin: pulled in by another package it would be another build.
$(VENV)/.ready: requirements.lock
	@test -n "$(BASE_PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; pass BASE_PYTHON=/path/to/python3.12" >&2; exit 2; }
	$(BASE_PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check $(OFFLINE) `grep '^torch==' requirements.lock`
	$(VENV)/bin/pip install -q --disable-pip-version-check $(OFFLINE) -r requirements.lock
	DS_ACCELERATOR=cpu $(VENV)/bin/python -m training.engine.prebuild
	@touch $@

wheelhouse: $(SETUP)  ## wheels of every pinned package, for nodes without network: there `make setup WHEELHOUSE=wheelhouse`
	@$(PYTHON) -m pip wheel -q --disable-pip-version-check -w wheelhouse -c requirements.lock `grep '^torch==' requirements.lock`
	@$(PYTHON) -m pip wheel -q --disable-pip-version-check --no-deps -w wheelhouse -r requirements.lock
	@du -sh wheelhouse

demo: $(SETUP)  ## raw text to a fine-tuned model that answers, on two CPU cores, with a stop and a resume on the way
	@$(PYTHON) -m launch demo --recipe $(RECIPE) $(ARGS)

data: $(SETUP)  ## gather and clean documents, train the tokenizer, write token shards
	@$(PYTHON) -m pipeline run --recipe $(RECIPE) $(ARGS)

ingest: $(SETUP)  ## read and clean the source alone; a quick try: ARGS="--limit 1000"
	@$(PYTHON) -m pipeline ingest --recipe $(RECIPE) $(ARGS)

slurm: $(SETUP)  ## pretraining as a SLURM job that comes back by itself: ARGS="launch.slurm.train.partition=…"
	@$(PYTHON) -m launch slurm pretrain --recipe $(RECIPE) $(ARGS)

slurm-data: $(SETUP)  ## the data stages as SLURM job arrays: ARGS="launch.slurm.partition=…"
	@$(PYTHON) -m launch slurm data --recipe $(RECIPE) $(ARGS)

tokenizer: $(SETUP)  ## train the tokenizer on the cleaned documents
	@$(PYTHON) -m pipeline clean --recipe $(RECIPE) $(ARGS)
	@$(PYTHON) -m tokenizer train --recipe $(RECIPE) $(ARGS)

examples: data  ## chat examples for fine-tuning
	@$(PYTHON) -m pipeline examples --recipe $(RECIPE) $(ARGS)

pretrain: data  ## pretrain, or go on from the newest whole checkpoint
	@$(PYTHON) -m launch recipe pretrain --recipe $(RECIPE) $(ARGS)

finetune: examples pretrain  ## fine-tune the pretrained weights on the examples
	@$(PYTHON) -m launch recipe finetune --recipe $(RECIPE) $(ARGS)

evaluate: $(SETUP)  ## bits per byte beside baselines, held-out answers before and after; or ARGS="attention …", ARGS="temperature"
	@$(PYTHON) -m training evaluate --recipe $(RECIPE) $(ARGS)

generate: $(SETUP)  ## complete a prompt: ARGS="generate.prompt='…' generate.temperature=0"; --trace: how each token came about
	@$(PYTHON) -m training generate --recipe $(RECIPE) $(ARGS)

export: $(SETUP)  ## the newest weights as a Hugging Face model directory, proven to be the same model
	@$(PYTHON) -m training export --recipe $(RECIPE) $(ARGS)

# Before the data are made, which may take days.
from:
	@test -f "$(FROM)/config.json" || { echo "error: FROM=$(FROM): no config.json is there: give a model directory in Hugging Face's layout, FROM=FOLDER" >&2; exit 2; }

import: from data  ## a Hugging Face model directory in place of pretraining: FROM=FOLDER
	@$(PYTHON) -m training import --recipe $(RECIPE) --from "$(FROM)" $(ARGS)

report: $(SETUP)  ## one self-contained page with the curves and tables of the run
	@$(PYTHON) -m training report --recipe $(RECIPE) $(ARGS)

compare: $(SETUP)  ## short trainings that differ in one thing: ARGS="optimizers" (activations, compile, devices, attention; --steps 50)
	@$(PYTHON) -m training compare --recipe $(RECIPE) $(ARGS)

estimate: $(SETUP)  ## parameters, FLOPs a token and memory a rank of a recipe, and the micro-batch that fits
	@$(PYTHON) -m training estimate --recipe $(RECIPE) $(ARGS)

inspect: $(SETUP)  ## every tensor and every module's output with its shape, and how many parameters; recipes in one table: ARGS="--compare configs/….yaml …"
	@$(PYTHON) -m training inspect --recipe $(RECIPE) $(ARGS)

verify: $(SETUP)  ## check every artefact and checkpoint against its manifest
	@$(PYTHON) -m pipeline verify --recipe $(RECIPE) $(ARGS)

stats: $(SETUP)  ## what the data stages kept and dropped: a table, and data.html with plots
	@$(PYTHON) -m pipeline stats --recipe $(RECIPE) $(ARGS)

test: $(SETUP)  ## all tests that need no GPU and no SLURM, but the slow ones
	@$(PYTHON) -m pytest -q -m "not gpu and not slow and not slurm"

test-engine: $(SETUP)  ## every test that starts DeepSpeed processes, slow ones too
	@$(PYTHON) -m pytest -q -m "engine and not gpu"

test-parity: $(SETUP)  ## parity with transformers over all 96 random configurations
	@$(PYTHON) -m pytest -q tests/training/test_parity.py

test-recovery: $(SETUP)  ## every data stage killed at twenty moments
	@$(PYTHON) -m pytest -q tests/pipeline/test_recovery.py

test-slurm: $(SETUP)  ## a real SLURM on this host, and DeepSpeed over sshd; installs what is missing (root, Debian; a quarter of an hour)
	@for tool in slurmctld slurmd munged sbatch sshd pdsh; do PATH="$$PATH:/usr/sbin" command -v $$tool >/dev/null || missing=1; done; \
	  if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurmctld slurmd slurm-client munge openssh-server pdsh >/dev/null; fi
	@$(PYTHON) -m pytest -q -m "slurm and ($(SLURM_TESTS))"

test-launch: $(SETUP)  ## exit statuses through every launcher, the slow ones too
	@$(PYTHON) -m pytest -q tests/launch -m "not slurm and not gpu"

test-gpu: $(SETUP)  ## only the tests that need a CUDA device
	@$(PYTHON) -m pytest -q -m gpu

bench-data: $(SETUP)  ## the data stages beside datatrove, datasets, tokenizers and tiktoken (a quarter of an hour)
	@$(PYTHON) -m pip install -q --disable-pip-version-check -r benchmarks/requirements.txt
	@$(PYTHON) -m benchmarks.data $(ARGS)

bench-memory: $(SETUP)  ## memory and time of the data stages on up to 5 GB of generated text (a quarter of an hour)
	@$(PYTHON) -m benchmarks.data_memory $(ARGS)

bench-model: $(SETUP)  ## DeepSeek, GPT-2 and attention windows beside their peers: steps, decoding, memory (most of an hour)
	@$(PYTHON) -m benchmarks.model $(ARGS)

bench-engine: $(SETUP)  ## the loop beside a bare DeepSpeed loop, and what saving costs (a quarter of an hour)
	@$(PYTHON) -m benchmarks.engine $(ARGS)

bench-estimate: $(SETUP)  ## the estimate of memory beside measured peaks (half an hour); on a GPU: ARGS="--device cuda"
	@$(PYTHON) -m benchmarks.estimate $(ARGS)

bench-gpu: $(SETUP)  ## the DeepSeek model on one GPU beside transformers and PyTorch's kernels (five minutes)
	@$(PYTHON) -m benchmarks.gpu $(ARGS)

check: $(SETUP)  ## lint, format and types
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy -p configs -p artefacts -p tokenizer -p pipeline -p training -p launch

lock:  ## write requirements.lock anew from pyproject.toml, in an environment of its own
	@.ci/lock

clean:  ## remove .venv and caches; runs stay
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis
