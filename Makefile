# `make help` lists the targets. Everything runs in .venv, which `make setup` makes from the lock.
SHELL := bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(BIN)/python
SOURCES := train.py recipes data_prep eval bench tests relaxed
CORPUS := data_prep/sotu/addresses.jsonl
SHARDS := shards/sotu
CHAT := shards/sotu-chat
# uv that is on the path, or one of our own beside the environment
UV := $(shell command -v uv 2>/dev/null || echo $(VENV)-uv/bin/uv)
# a Python that the lock supports: the environment's version can be chosen with `make setup BASE_PYTHON=python3.12`
BASE_PYTHON ?= $(shell for p in $(PYTHON) python3.12 python3.11 python3.10 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3,10) <= sys.version_info[:2] < (3,13))' 2>/dev/null && { command -v $$p; break; }; done)

.PHONY: help setup data train finetune eval test test-gpu check format lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.installed ## make .venv with everything in the lock; fetches uv if it is missing

$(VENV)/.installed: uv.lock pyproject.toml
	@test -n "$(BASE_PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found; install one, or name it: make setup BASE_PYTHON=…" >&2; exit 1; }
	@test -x "$(UV)" || { $(BASE_PYTHON) -m venv $(VENV)-uv && $(VENV)-uv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9; }
	$(UV) sync --frozen --compile-bytecode --python $(BASE_PYTHON)
	@touch $@

data: setup ## the embedded corpus → tokenizer, shards and evaluation tasks in shards/sotu
	$(PYTHON) -m data_prep.tokenizer $(CORPUS) --out $(SHARDS)/tokenizer --vocab-size 2048 --holdout 0.05
	$(PYTHON) -m data_prep.pretrain $(CORPUS) --out $(SHARDS) --tokenizer $(SHARDS)/tokenizer --seq-len 128 --holdout 0.05
	@test -f $(SHARDS)/tasks/dates.jsonl || $(PYTHON) -m eval.tasks.generate $(SHARDS)/val/documents.jsonl --out $(SHARDS)/tasks

train: data ## the whole story on the embedded corpus: prepare, train, evaluate, sum up
	$(PYTHON) -m recipes.launch train.py yamls/pretrain/mpt-quickstart.yaml
	$(PYTHON) -m recipes.launch eval/evaluate.py yamls/eval/quickstart.yaml
	$(PYTHON) -m recipes summary runs/mpt-quickstart

finetune: train ## the quickstart model learns to answer questions; its answers before and after
	$(PYTHON) -m data_prep.chat_tokenizer --tokenizer $(SHARDS)/tokenizer --out $(CHAT)/tokenizer
	$(PYTHON) -m data_prep.finetune data_prep/sotu/questions.jsonl --out $(CHAT) --tokenizer $(CHAT)/tokenizer --seq-len 128 --holdout 0.05
	$(PYTHON) -m recipes.launch train.py yamls/finetune/mpt-quickstart-chat.yaml
	$(PYTHON) -m recipes generate runs/mpt-quickstart runs/mpt-quickstart-chat --prompts data_prep/sotu/questions.txt \
		--chat --tokenizer $(CHAT)/tokenizer --temperature 0 --max-new-tokens 30

eval: setup ## evaluate the quickstart run again
	$(PYTHON) -m recipes.launch eval/evaluate.py yamls/eval/quickstart.yaml

# One thread a process: two processes of two threads on two cores wait for each other most of the time.
test: setup ## all tests, offline, on a CPU
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-gpu: setup ## the kernels on a GPU, against the float64 reference
	HF_HUB_OFFLINE=1 TESTED_ON=cuda $(PYTHON) -m pytest -m cuda tests/models

check: setup ## format, lint, types, and generated files that are out of date
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(PYTHON) -m recipes.config.schema --check
	$(PYTHON) -m recipes.planning.listing --check
	$(UV) lock --check
	$(PYTHON) relaxed/make.py $(UV) --check

format: setup ## put the code in the one format
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lock: ## after a change in pyproject.toml: lock, export, and describe the recipes' keys anew
	$(UV) lock
	$(MAKE) setup
	$(PYTHON) relaxed/make.py $(UV)
	$(PYTHON) -m recipes.config.schema

clean: ## remove the environment, the shards, the runs and exports/, where downloaded weights may be
	rm -rf $(VENV) $(VENV)-uv shards runs exports
