# Two commands are all a new machine needs: `make demo` and `make test`. Each sets up .venv first, quickly the second time.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: setup demo test test-slow check bench bench-quick bench-others bench-check clean

setup: $(VENV)/.done

# pip compiles what it installs on one core; here all do (a few files are templates, which do not compile)
$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@$(RUN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

# The main job on real text: pretrain, fine-tune, measure.
demo: setup
	$(RUN)/hftune pretrain recipes/bert.yaml
	$(RUN)/hftune finetune recipes/sentiment.yaml
	$(RUN)/hftune eval runs/sentiment

test: setup
	$(RUN)/python -m pytest -n 2 --dist worksteal

test-slow: setup
	$(RUN)/python -m pytest -n 2 --dist worksteal -m slow

check: setup
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

# Against transformers' example scripts, on a quiet machine: make bench ONLY="masked_lm xlnet" PAIRS=3
ONLY ?=
PAIRS ?= 5

bench: setup
	$(RUN)/python -m benchmarks.bench $(ONLY) --pairs $(PAIRS)

bench-quick: setup
	$(RUN)/python -m benchmarks.bench --quick

# Against other tools, each in an environment of its own, which is installed first.
bench-others: setup
	$(RUN)/python -m benchmarks.bench others --pairs $(PAIRS)

bench-check: setup
	$(RUN)/python -m benchmarks.bench equality

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
