# make demo: upscale the bundled photo to 4096 px.  make test: set up and pass the tests.
# Any Python 3.10+ with venv will do; TORCH= chooses another PyTorch than the one we test with.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

$(VENV)/.runtime:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" safetensors numpy pillow einops
	touch $@

$(VENV)/.test: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet pytest diffusers accelerate transformers ruff==0.17.5 pyright==1.1.414
	touch $@

demo: $(VENV)/.runtime
	mkdir -p demo_output
	$(BIN)/python -m op4ksr_core demo -o demo_output

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) demo_output .pytest_cache .ruff_cache
