# make demo: upscale the bundled photo to 4096 px.  make test: set up and pass the tests that need two minutes.
# make test-all: the rest of the tests (slow ones, ComfyUI, a browser).  make lint: ruff and pyright.
# Any Python 3.10+ with venv will do; TORCH= chooses another PyTorch than the one we test with.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint clean

$(VENV)/.runtime:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" safetensors numpy pillow einops
	touch $@

$(VENV)/.test: $(VENV)/.runtime pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[test,dev]"
	touch $@

demo: $(VENV)/.runtime
	mkdir -p demo_output
	$(BIN)/python -m op4ksr_core demo -o demo_output

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not host and not gpu"

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -m "slow or host or gpu"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) demo_output .pytest_cache .ruff_cache
