# Each target is one command, which also works alone with --help. Stages skip what is finished by the manifests they
# wrote: a changed recipe section makes only what depends on it again. `make` lists the targets.
#
#   make demo                                     everything, from text to answers, in ten minutes
#   make pretrain RECIPE=configs/node.yaml ARGS="train.learning_rate=2e-4 launch.processes=8"
#   make PYTHON=python3 test-gpu                  with an environment of your own, no .venv

RECIPE ?= configs/demo.yaml
ARGS ?=
SLURM_TESTS ?= slow or not slow
BASE_PYTHON ?= $(firstword $(foreach p,python3.12 python3.11 python3,$(shell $(p) -c 'import sys; print("$(p)" if (3,11) <= sys.version_info < (3,13) else "")' 2>/dev/null)))

VENV := .venv
# What runs needs SETUP; checks, tests and benchmarks need DEV, which adds to the same environment.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(VENV)/bin/python
SETUP := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
else
SETUP := own-python
DEV := own-python-for-tests
endif
# make takes any word with = for a variable, and would go on without it.
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
$(foreach name,$(GIVEN),$(if $(findstring .,$(name)),$(error $(name)=$(value $(name)): write recipe keys as ARGS="$(name)=$(value $(name))")))
$(foreach name,$(filter-out %_proxy,$(GIVEN)),$(if $(shell printf %s '$(name)' | tr -d 'A-Z0-9_'),$(error $(name)=$(value $(name)): variables are written in capitals (RECIPE, ARGS, PROMPT, …), and recipe keys as ARGS="section.key=value")))
KNOWN := RECIPE ARGS PROMPT FROM KEY PYTHON VENV SETUP DEV WHEELHOUSE CC CXX CFLAGS CXXFLAGS SHELL PATH HOME TMPDIR LANG TZ MAKE
$(foreach name,$(filter-out $(KNOWN) %_proxy,$(GIVEN)),$(if $(findstring _,$(name)),,$(error $(name)=$(value $(name)): make takes RECIPE, ARGS, PROMPT, FROM, KEY and PYTHON)))
# As it was typed: a $ in it is no variable of make's, and the shell sees it only as a variable of its own.
ifeq ($(origin PROMPT),command line)
override PROMPT := $(value PROMPT)
export PROMPT
WITH_PROMPT = "generate.prompt=$$PROMPT"
endif

# With TORCH_INDEX=URL, torch may come from there; with WHEELHOUSE=FOLDER, all from there, and no network is asked.
TORCH_FROM := $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)")
OFFLINE := $(if $(WHEELHOUSE),--no-index --find-links="$(WHEELHOUSE)")
# The locks are complete, so nothing is resolved (--no-deps). Of 17,000 modules those that runs import are compiled here,
# once: PYTHONDONTWRITEBYTECODE often forbids it later, and otherwise a thousand ranks would compile at the same time.
INSTALL := "$(VENV)/bin/python" -m pip install -q --disable-pip-version-check --no-compile $(OFFLINE)
USED := datasets, deepspeed, matplotlib.pyplot, torch._dynamo, torch.distributed.run, training.trainer.callbacks.tensorboard, \
  training.commands.evaluate, training.commands.pretrain, training.commands.report
# C++ tests of its own in torch's wheel for CPUs: 0.12 GB that nothing runs.
UNUSED = "$(VENV)"/lib/python*/site-packages/torch/test "$(VENV)"/lib/python*/site-packages/torch/bin/test_*

# The commands of one make share ARGS: what any of its targets reads may be given.
export MILLRACE_TARGETS := $(MAKECMDGOALS)
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.cache/torch_extensions
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

RUN = @"$(PYTHON)" -m
WITH_RECIPE = --recipe "$(RECIPE)" $(ARGS)
# A test process for each core; what shares a fixture stays in one (tests/conftest.py).
PYTEST = @"$(PYTHON)" -m pytest -q
CHECK_OWN = @command -v "$(PYTHON)" >/dev/null || { echo "error: PYTHON=$(PYTHON): no such program" >&2; exit 2; }; \
  "$(PYTHON)" .ci/environment.py
PARALLEL = -n auto --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
# Stages build on each other's results, which make does not see: -j must not start two of them together.
.NOTPARALLEL:
.PHONY: help own-python own-python-for-tests setup demo data tokenizer examples pretrain finetune import from \
  evaluate generate compare export report estimate inspect explain verify stats ingest slurm slurm-data wheelhouse \
  check test test-all test-engine test-parity test-recovery test-launch test-slurm test-gpu \
  bench-data bench-memory bench-model bench-engine bench-estimate bench-gpu lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^##@/ {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "  RECIPE=configs/….yaml (now $(RECIPE)), ARGS=\"section.key=value …\", PYTHON=python3 for an environment of your own,"
	@echo "  BASE_PYTHON=/path/to/python3.12 to make .venv from, TORCH_INDEX=https://download.pytorch.org/whl/cpu for torch without CUDA (1.2 GB, not 5.5)"

##@ Run

demo: $(SETUP)  ## raw text to a fine-tuned model that answers, on two CPU cores, with a stop and a resume on the way
	$(RUN) launch demo $(WITH_RECIPE)

data: $(SETUP)  ## gather and clean documents, train the tokenizer, write token shards
	$(RUN) pipeline run $(WITH_RECIPE)

tokenizer: $(SETUP)  ## train the tokenizer on the cleaned documents
	$(RUN) pipeline clean $(WITH_RECIPE)
	$(RUN) tokenizer train $(WITH_RECIPE)

examples: data  ## chat examples for fine-tuning
	$(RUN) pipeline examples $(WITH_RECIPE)

pretrain: data  ## pretrain, or go on from the newest whole checkpoint
	$(RUN) launch auto pretrain $(WITH_RECIPE)

finetune: examples pretrain  ## fine-tune the pretrained weights on the examples
	$(RUN) launch auto finetune $(WITH_RECIPE)

evaluate: $(SETUP)  ## bits per byte beside baselines, held-out answers before and after; or ARGS="attention …", ARGS="temperature"
	$(RUN) training evaluate $(WITH_RECIPE)

generate: $(SETUP)  ## complete PROMPT="…": ARGS="generate.temperature=0"; --prompt-file FILE, - for standard input; --trace: how each token came about
	$(RUN) training generate $(WITH_RECIPE) $(WITH_PROMPT)

export: $(SETUP)  ## the newest weights as a Hugging Face model directory, read back and compared
	$(RUN) training export $(WITH_RECIPE)

# Before the data are made, which may take days.
from:
	@test -f "$(FROM)/config.json" || { echo "error: FROM=$(FROM): no config.json is there: give a model directory in Hugging Face's layout, FROM=FOLDER" >&2; exit 2; }

import: from data  ## a Hugging Face model directory in place of pretraining: FROM=FOLDER
	$(RUN) training import --from "$(FROM)" $(WITH_RECIPE)

##@ Look

report: $(SETUP)  ## one self-contained page with the curves and tables of the run
	$(RUN) training report $(WITH_RECIPE)

compare: $(SETUP)  ## short trainings that differ in one thing: ARGS="optimizers" (activations, compile, devices, attention; --steps 50)
	$(RUN) training compare $(WITH_RECIPE)

estimate: $(SETUP)  ## parameters, FLOPs a token and memory a rank of a recipe, and the micro-batch that fits
	$(RUN) training estimate $(WITH_RECIPE)

inspect: $(SETUP)  ## every tensor and every module's output with its shape, and how many parameters; recipes in one table: ARGS="--compare configs/….yaml …"
	$(RUN) training inspect $(WITH_RECIPE)

explain: $(SETUP)  ## what a recipe key means, its default and bounds: KEY=train.micro_batch; or a section: KEY=train
	$(RUN) configs explain "$(KEY)"

##@ Data

ingest: $(SETUP)  ## read and clean the source alone; a quick try: ARGS="--limit 1000"
	$(RUN) pipeline ingest $(WITH_RECIPE)

stats: $(SETUP)  ## what the data stages kept and dropped: a table, and data.html with plots
	$(RUN) pipeline stats $(WITH_RECIPE)

verify: $(SETUP)  ## check every artefact and checkpoint against its manifest
	$(RUN) pipeline verify $(WITH_RECIPE)

##@ Cluster

slurm: $(SETUP)  ## pretraining as a SLURM job that comes back by itself: ARGS="launch.slurm.train.partition=…"
	$(RUN) launch slurm pretrain $(WITH_RECIPE)

slurm-data: $(SETUP)  ## the data stages as SLURM job arrays: ARGS="launch.slurm.partition=…"
	$(RUN) launch slurm data $(WITH_RECIPE)

wheelhouse: $(SETUP)  ## wheels of every package that runs need, for nodes without network: there `make setup WHEELHOUSE=wheelhouse`
	$(RUN) pip wheel -q --disable-pip-version-check -w wheelhouse $(TORCH_FROM) -c requirements.lock `grep '^torch==' requirements.lock`
	$(RUN) pip wheel -q --disable-pip-version-check --no-deps -w wheelhouse -r requirements.lock
	@du -sh wheelhouse

##@ Develop

setup: $(SETUP)  ## make .venv with what runs need, pinned; skipped when nothing changed, and done by every target

check: $(DEV)  ## lint, format and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) configs reference --check
	$(RUN) mypy -p configs -p artefacts -p tokenizer -p pipeline -p training -p launch

test: $(DEV)  ## all tests that need no GPU and no SLURM, except the slow ones (ten minutes)
	$(PYTEST) $(PARALLEL) -m "not gpu and not slow and not slurm"

test-all: $(DEV)  ## every test that a machine without a GPU can run, the slow ones and SLURM's too (forty minutes)
	$(PYTEST) $(PARALLEL) -m "not gpu and not slurm"
	@$(MAKE) --no-print-directory test-slurm

test-engine: $(DEV)  ## every test that starts DeepSpeed processes, slow ones too
	$(PYTEST) $(PARALLEL) -m "engine and not gpu"

test-parity: $(DEV)  ## parity with transformers over all 96 random configurations
	$(PYTEST) tests/training/models/test_parity.py

test-recovery: $(DEV)  ## every data stage killed at twenty moments
	$(PYTEST) tests/pipeline/test_recovery.py

test-launch: $(DEV)  ## exit statuses through every launcher, the slow ones too
	$(PYTEST) $(PARALLEL) tests/launch -m "not slurm and not gpu"

test-slurm: $(DEV)  ## a real SLURM on this host, and DeepSpeed over sshd; installs what is missing (root, Debian; a quarter of an hour)
	@for tool in slurmctld slurmd munged sbatch sshd pdsh; do PATH="$$PATH:/usr/sbin" command -v $$tool >/dev/null || missing=1; done; \
	  if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurmctld slurmd slurm-client munge openssh-server pdsh >/dev/null; fi
	$(PYTEST) -m "slurm and ($(SLURM_TESTS))"

test-gpu: $(DEV)  ## only the tests that need a CUDA device
	$(PYTEST) -m gpu

bench-data: $(DEV)  ## the data stages beside datatrove, datasets, tokenizers and tiktoken (a quarter of an hour)
	$(RUN) benchmarks.data $(ARGS)

bench-memory: $(DEV)  ## memory and time of the data stages on up to 5 GB of generated text (a quarter of an hour)
	$(RUN) benchmarks.data.memory $(ARGS)

bench-model: $(DEV)  ## DeepSeek, GPT-2 and attention windows beside their peers: steps, decoding, memory (most of an hour)
	$(RUN) benchmarks.model $(ARGS)

bench-engine: $(DEV)  ## the loop beside a bare DeepSpeed loop, and what saving costs (a quarter of an hour)
	$(RUN) benchmarks.engine $(ARGS)

bench-estimate: $(DEV)  ## the estimate of memory beside measured peaks (half an hour); on a GPU: ARGS="--device cuda"
	$(RUN) benchmarks.estimate $(ARGS)

bench-gpu: $(DEV)  ## the DeepSeek model on one GPU beside transformers and PyTorch's kernels (five minutes)
	$(RUN) benchmarks.gpu $(ARGS)

lock:  ## write requirements.lock and requirements-dev.lock from pyproject.toml, in an environment of its own
	@.ci/lock

clean:  ## remove .venv and caches; runs stay
	rm -rf "$(VENV)" .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis

own-python:
	$(CHECK_OWN)

own-python-for-tests:
	$(CHECK_OWN) pytest hypothesis

# torch first and by its exact pin: pulled in by another package it would be another build.
$(VENV)/.ready: requirements.lock
	@test -n "$(BASE_PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; pass BASE_PYTHON=/path/to/python3.12" >&2; exit 2; }
	@echo "setup: torch and what Millrace runs with into $(VENV), once: a minute or more; 1.2 GB, 5.5 with CUDA"
	@"$(BASE_PYTHON)" -m venv "$(VENV)"
	@$(INSTALL) $(TORCH_FROM) -c requirements.lock `grep '^torch==' requirements.lock`
	@$(INSTALL) --no-deps -r requirements.lock
	@rm -rf $(UNUSED)
	@env -u PYTHONDONTWRITEBYTECODE DS_ACCELERATOR=cpu "$(VENV)/bin/python" -c "import $(USED)"
	@"$(VENV)/bin/python" -c 'import platform, torch; print(f"setup: done, Python {platform.python_version()}, torch {torch.__version__}")'
	@touch "$@"

$(VENV)/.ready-dev: requirements-dev.lock $(VENV)/.ready
	@echo "setup: what checks, tests and benchmarks need on top of it, once: 0.4 GB"
	@$(INSTALL) --no-deps -r requirements-dev.lock
	@touch "$@"
