# Each target runs one command, which you can also run directly and which has --help. Finished stages are skipped: a
# manifest records what each was built from, and a changed recipe section rebuilds only what depends on it.
#
#   make                                          list the targets
#   make demo                                     everything, from raw text to answers, in ten minutes
#   make pretrain RECIPE=configs/node.yaml ARGS="train.learning_rate=2e-4 launch.processes=8"
#   make PYTHON=python3 test-gpu                  use your own Python environment instead of .venv

RECIPE ?= configs/demo.yaml
ARGS ?=
SLURM_TESTS ?= slow or not slow
BASE_PYTHON ?= $(firstword $(foreach p,python3.12 python3.11 python3,$(shell $(p) -c 'import sys; print("$(p)" if (3,11) <= sys.version_info < (3,13) else "")' 2>/dev/null)))

VENV := .venv
# SETUP installs what runs need. DEV adds what checks, tests and benchmarks need, to the same environment.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(VENV)/bin/python
SETUP := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
else
SETUP := own-python
DEV := own-python-for-tests
endif
# make accepts any NAME=value as a variable, so a typo would be ignored silently. Reject names that no target reads.
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
$(foreach name,$(GIVEN),$(if $(findstring .,$(name)),$(error $(name)=$(value $(name)): write recipe keys as ARGS="$(name)=$(value $(name))")))
$(foreach name,$(filter-out %_proxy,$(GIVEN)),$(if $(shell printf %s '$(name)' | tr -d 'A-Z0-9_'),$(error $(name)=$(value $(name)): variables are written in capitals (RECIPE, ARGS, PROMPT, …), and recipe keys as ARGS="section.key=value")))
KNOWN := RECIPE ARGS PROMPT FROM KEY PYTHON VENV SETUP DEV WHEELHOUSE CC CXX CFLAGS CXXFLAGS SHELL PATH HOME TMPDIR LANG TZ MAKE
$(foreach name,$(filter-out $(KNOWN) %_proxy,$(GIVEN)),$(if $(findstring _,$(name)),,$(error $(name)=$(value $(name)): make takes RECIPE, ARGS, PROMPT, FROM, KEY and PYTHON)))
# The prompt reaches the command as typed: `value` keeps make from expanding a $, and so does the shell variable.
ifeq ($(origin PROMPT),command line)
override PROMPT := $(value PROMPT)
export PROMPT
WITH_PROMPT = "generate.prompt=$$PROMPT"
endif

# TORCH_INDEX=URL adds an index for torch. WHEELHOUSE=FOLDER installs everything from a folder, without network.
TORCH_FROM := $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)")
OFFLINE := $(if $(WHEELHOUSE),--no-index --find-links="$(WHEELHOUSE)")
# The lock files are complete, so pip need not resolve anything (--no-deps). Of 17,000 modules, only those that runs
# import are compiled, once and here: later, PYTHONDONTWRITEBYTECODE may prevent it, or a thousand ranks would compile
# them at the same time.
INSTALL := "$(VENV)/bin/python" -m pip install -q --disable-pip-version-check --no-compile $(OFFLINE)
USED := datasets, deepspeed, matplotlib.pyplot, torch._dynamo, torch.distributed.run, training.trainer.callbacks.tensorboard, \
  training.commands.evaluate, training.commands.pretrain, training.commands.report
# torch's own C++ tests in its CPU wheel: 0.12 GB that nothing uses.
UNUSED = "$(VENV)"/lib/python*/site-packages/torch/test "$(VENV)"/lib/python*/site-packages/torch/bin/test_*

# The targets of one make share ARGS: a key is accepted if any of them reads it.
export MILLRACE_TARGETS := $(MAKECMDGOALS)
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.cache/torch_extensions
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

RUN = @"$(PYTHON)" -m
WITH_RECIPE = --recipe "$(RECIPE)" $(ARGS)
# One test process per core. Tests that share a fixture stay in one process (tests/conftest.py).
PYTEST = @"$(PYTHON)" -m pytest -q
CHECK_OWN = @command -v "$(PYTHON)" >/dev/null || { echo "error: PYTHON=$(PYTHON): no such program" >&2; exit 2; }; \
  "$(PYTHON)" .ci/environment.py
PARALLEL = -n auto --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
# Stages depend on each other's results, which make does not know about: -j must not start two of them at once.
.NOTPARALLEL:
.PHONY: help own-python own-python-for-tests setup demo data tokenizer examples pretrain finetune import from \
  evaluate generate compare export report estimate inspect explain verify stats ingest slurm slurm-data wheelhouse \
  check test test-all test-engine test-parity test-recovery test-launch test-slurm test-gpu \
  bench-data bench-memory bench-model bench-engine bench-estimate bench-gpu lock clean

help:  ## list all targets
	@awk -F ':.*## ' '/^##@/ {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "  RECIPE=configs/….yaml (now $(RECIPE)), ARGS=\"section.key=value …\", PYTHON=python3 to use your own environment,"
	@echo "  BASE_PYTHON=/path/to/python3.12 to select the Python for .venv,"
	@echo "  TORCH_INDEX=https://download.pytorch.org/whl/cpu to install torch without CUDA"

##@ Run

demo: $(SETUP)  ## go from raw text to a fine-tuned model on two CPU cores, with a simulated crash and a resume
	$(RUN) launch demo $(WITH_RECIPE)

data: $(SETUP)  ## read and clean documents, train the tokenizer, write token shards
	$(RUN) pipeline run $(WITH_RECIPE)

tokenizer: $(SETUP)  ## train the tokenizer on the cleaned documents
	$(RUN) pipeline clean $(WITH_RECIPE)
	$(RUN) tokenizer train $(WITH_RECIPE)

examples: data  ## build the chat examples for fine-tuning
	$(RUN) pipeline examples $(WITH_RECIPE)

pretrain: data  ## pretrain, or resume from the latest complete checkpoint
	$(RUN) launch auto pretrain $(WITH_RECIPE)

finetune: examples pretrain  ## train the recipe's fine-tuning stages, one after another
	$(RUN) launch auto finetune $(WITH_RECIPE)

evaluate: $(SETUP)  ## measure bits per byte against baselines, loss on held-out answers, and evaluate.tasks; or ARGS="checkpoints", ARGS="attention …", ARGS="temperature"
	$(RUN) training evaluate $(WITH_RECIPE)

generate: $(SETUP)  ## continue PROMPT="…"; ARGS="--prompt-file FILE" reads it from a file (- for standard input), ARGS="--trace" prints token probabilities
	$(RUN) training generate $(WITH_RECIPE) $(WITH_PROMPT)

export: $(SETUP)  ## write the latest weights as a Hugging Face model directory, with adapters in peft's format, and verify it
	$(RUN) training export $(WITH_RECIPE)

# Checked before the data stages, which may take days.
from:
	@test -f "$(FROM)/config.json" || { echo "error: $(if $(FROM),FROM=$(FROM) has no config.json,FROM is not set): set FROM to a model directory in Hugging Face format" >&2; exit 2; }

import: from data  ## use the weights in a Hugging Face model directory instead of pretraining: FROM=FOLDER
	$(RUN) training import --from "$(FROM)" $(WITH_RECIPE)

##@ Look

report: $(SETUP)  ## write one HTML page with the run's curves and tables
	$(RUN) training report $(WITH_RECIPE)

compare: $(SETUP)  ## compare short training runs that differ in one setting: ARGS="optimizers" (or activations, compile, devices, attention); or evaluations: ARGS="runs runs/a runs/b"
	$(RUN) training compare $(WITH_RECIPE)

estimate: $(SETUP)  ## print parameters, FLOPs per token, memory per rank, and the largest micro-batch that fits
	$(RUN) training estimate $(WITH_RECIPE)

inspect: $(SETUP)  ## print every tensor with its shape, and parameter counts; or compare recipes in a table: ARGS="--compare configs/….yaml …"
	$(RUN) training inspect $(WITH_RECIPE)

explain: $(SETUP)  ## print a recipe key's meaning, default and bounds: KEY=train.micro_batch; or list a section's keys: KEY=train
	$(RUN) configs explain "$(if $(findstring command,$(origin KEY)),$(KEY))"

##@ Data

ingest: $(SETUP)  ## only read and clean the sources; for a quick look: ARGS="--limit 1000"
	$(RUN) pipeline ingest $(WITH_RECIPE)

stats: $(SETUP)  ## show what the data stages kept and dropped, in tables and in data.html with plots
	$(RUN) pipeline stats $(WITH_RECIPE)

verify: $(SETUP)  ## check every artefact and checkpoint against its manifest
	$(RUN) pipeline verify $(WITH_RECIPE)

##@ Cluster

slurm: $(SETUP)  ## submit pretraining as a SLURM job that requeues itself: ARGS="launch.slurm.train.partition=…"
	$(RUN) launch slurm pretrain $(WITH_RECIPE)

slurm-data: $(SETUP)  ## submit the data stages as SLURM job arrays: ARGS="launch.slurm.partition=…"
	$(RUN) launch slurm data $(WITH_RECIPE)

wheelhouse: $(SETUP)  ## download all wheels; on machines without network access: `make setup WHEELHOUSE=wheelhouse`
	$(RUN) pip wheel -q --disable-pip-version-check -w wheelhouse $(TORCH_FROM) -c requirements.lock `grep '^torch==' requirements.lock`
	$(RUN) pip wheel -q --disable-pip-version-check --no-deps -w wheelhouse -r requirements.lock
	@du -sh wheelhouse

##@ Develop

setup: $(SETUP)  ## create .venv with pinned packages; every target does this if necessary

check: $(DEV)  ## check lint, format, types, words, and whether docs/recipe.md is up to date
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	@"$(PYTHON)" .ci/words.py
	$(RUN) configs reference --check
	$(RUN) mypy -p configs -p artefacts -p tokenizer -p pipeline -p training -p launch

test: $(DEV)  ## run all tests that need neither a GPU nor SLURM, except the slow ones (10 minutes)
	$(PYTEST) $(PARALLEL) -m "not gpu and not slow and not slurm"

test-all: $(DEV)  ## run every test that does not need a GPU, including slow tests and SLURM tests (40 minutes)
	$(PYTEST) $(PARALLEL) -m "not gpu and not slurm"
	@$(MAKE) --no-print-directory test-slurm

test-engine: $(DEV)  ## run every test that starts DeepSpeed processes, including slow tests
	$(PYTEST) $(PARALLEL) -m "engine and not gpu"

test-parity: $(DEV)  ## compare with transformers on all 96 random configurations
	$(PYTEST) tests/training/models/test_parity.py

test-recovery: $(DEV)  ## kill every data stage at twenty points
	$(PYTEST) tests/pipeline/test_recovery.py

test-launch: $(DEV)  ## test exit statuses with every launcher, including slow tests
	$(PYTEST) $(PARALLEL) tests/launch -m "not slurm and not gpu"

test-slurm: $(DEV)  ## test with a real two-node SLURM cluster on this host, and DeepSpeed over ssh; as root on Debian, this installs missing packages (15 minutes)
	@for tool in slurmctld slurmd munged sbatch sshd pdsh; do PATH="$$PATH:/usr/sbin" command -v $$tool >/dev/null || missing=1; done; \
	  if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurmctld slurmd slurm-client munge openssh-server pdsh >/dev/null; fi
	$(PYTEST) -m "slurm and ($(SLURM_TESTS))"

test-gpu: $(DEV)  ## run only the tests that need a CUDA GPU
	$(PYTEST) -m gpu

bench-data: $(DEV)  ## compare the data stages with datatrove, datasets, tokenizers and tiktoken (15 minutes)
	$(RUN) benchmarks.data $(ARGS)

bench-memory: $(DEV)  ## measure memory and time of the data stages on up to 5 GB of generated text (15 minutes)
	$(RUN) benchmarks.data.memory $(ARGS)

bench-model: $(DEV)  ## compare models with transformers and nanoGPT: training steps, decoding, memory (almost an hour)
	$(RUN) benchmarks.model $(ARGS)

bench-engine: $(DEV)  ## compare the training loop with a bare DeepSpeed loop, and measure the cost of saving (15 minutes)
	$(RUN) benchmarks.engine $(ARGS)

bench-estimate: $(DEV)  ## compare estimated memory with measured peaks (30 minutes); on a GPU: ARGS="--device cuda"
	$(RUN) benchmarks.estimate $(ARGS)

bench-gpu: $(DEV)  ## compare the DeepSeek model on one GPU with transformers and PyTorch's kernels (5 minutes)
	$(RUN) benchmarks.gpu $(ARGS)

lock:  ## write requirements.lock and requirements-dev.lock from pyproject.toml
	@.ci/lock

clean:  ## remove .venv and caches, but not runs
	rm -rf "$(VENV)" .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis

own-python:
	$(CHECK_OWN)

own-python-for-tests:
	$(CHECK_OWN) pytest hypothesis

# torch first, by its exact pin: as a dependency of another package it could be another build.
$(VENV)/.ready: requirements.lock
	@test -n "$(BASE_PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; pass BASE_PYTHON=/path/to/python3.12" >&2; exit 2; }
	@echo "setup: installing torch and the packages that runs need into $(VENV): 1.2 GB, or 5.5 GB with CUDA; a minute or more"
	@"$(BASE_PYTHON)" -m venv "$(VENV)"
	@$(INSTALL) $(TORCH_FROM) -c requirements.lock `grep '^torch==' requirements.lock`
	@$(INSTALL) --no-deps -r requirements.lock
	@rm -rf $(UNUSED)
	@env -u PYTHONDONTWRITEBYTECODE DS_ACCELERATOR=cpu "$(VENV)/bin/python" -c "import $(USED)"
	@"$(VENV)/bin/python" -c 'import platform, torch; print(f"setup: done, Python {platform.python_version()}, torch {torch.__version__}")'
	@touch "$@"

$(VENV)/.ready-dev: requirements-dev.lock $(VENV)/.ready
	@echo "setup: installing what checks, tests and benchmarks need: 0.4 GB"
	@$(INSTALL) --no-deps -r requirements-dev.lock
	@touch "$@"
