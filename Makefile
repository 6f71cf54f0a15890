PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test bench lint install clean

demo: $(VENV)/.installed
	$(BIN)/spikegpt demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks

lint: $(VENV)/.installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find src -name '*.py' -o -name '*.cpp' -o -name '*.h')

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and pinned: an install that resolves it later could pull gigabytes of CUDA packages.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -c constraints.txt torch numpy
	touch $@

$(VENV)/.installed: $(SOURCES) $(VENV)/.torch
	$(BIN)/pip install -q -c constraints.txt .
	touch $@

$(VENV)/.installed-test: $(SOURCES) $(VENV)/.torch
	$(BIN)/pip install -q -c constraints.txt '.[test,lint,plot]'
	touch $@

clean:
	rm -rf build $(VENV)/.installed $(VENV)/.installed-test
