PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The constraints pin torch: a later step that resolved it anew could pull gigabytes of CUDA packages.
PIP := $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: demo test bench lint selftest selftest-aarch64 selftest-sanitized docs kill fuzz clean

demo: $(VENV)/.installed
	$(BIN)/spikegpt demo

# The tests are many and small: a thread each, and a process for each core.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Kills of commands at random moments, and mutations of every file that is read: many more than the tests do.
KILLS ?= 200
MINUTES ?= 10
kill: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill/killing.py --kills $(KILLS)

fuzz: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzzing.py --minutes $(MINUTES)

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks

lint: $(VENV)/.installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

# The pages of docs/ and the API reference into build/site; fails on a broken link or a name without its docstring.
docs: $(VENV)/.installed-docs
	$(BIN)/ruff check -q src
	DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet

# Kernels and engine without Python, beside vectors from the reference: here, on Arm under emulation (Debian's
# g++-aarch64-linux-gnu and qemu-user), and here with the sanitizers for addresses and undefined behaviour.
selftest: $(VENV)/.installed-test
	$(BIN)/python tests/selftest/selftest.py $(if $(TOKENS),--tokens $(TOKENS))

selftest-aarch64: $(VENV)/.installed-test
	$(BIN)/python tests/selftest/selftest.py --compiler aarch64-linux-gnu-g++ --emulator qemu-aarch64 $(if $(TOKENS),--tokens $(TOKENS))

selftest-sanitized: $(VENV)/.installed-test
	$(BIN)/python tests/selftest/selftest.py --sanitize

SOURCES := pyproject.toml README.md CMakeLists.txt $(shell find src -type f -not -name '*.so' -not -name '*.pyc')

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that whatever build of it is at hand (a wheel for the CPU, say) stays.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	$(PIP) torch numpy
	touch $@

$(VENV)/.installed: $(SOURCES) $(VENV)/.torch
	$(PIP) .
	touch $@

# Other implementations that tests and benchmarks compare with. What does not install is left out: its tests skip and
# say so. Those without their dependencies ask for torchvision, torchaudio or drivers, which bring another torch and are not needed;
# loguru is what spikingjelly imports.
PEERS := 'spikegpt[serve]' 'spikegpt[redis]' openai schemathesis playwright tenacity aiohttp 'spikegpt[notebook]' ziglang unicorn 'spikegpt[nir]' 'spikegpt[onnx]' onnxruntime nirtorch snntorch pbr '--no-deps norse' '--no-deps sinabs' 'spikegpt[hf]' 'spikegpt[lm-eval]' triton rwkv loguru '--no-deps spikingjelly' '--no-deps neurobench' gguf

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) 'spikegpt[test,lint]'
	@for peer in $(PEERS); do $(PIP) $$peer || echo "$$peer: not installed, its tests will skip"; done
	touch $@

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/.torch
	$(PIP) ruff 'mkdocs>=1.6,<2' 'mkdocstrings[python]>=0.29'
	touch $@

clean:
	rm -rf build $(VENV)/.installed $(VENV)/.installed-test
