# Two commands on a fresh machine: `make demo` and `make test`. Everything lives in .venv; PYTHON picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Two worker processes with one thread each suit a small machine; the demo and benchmarks use every core.
WORKERS ?= 2

.PHONY: help demo test zoo outside matrix lint gpu kernels clean

help:
	@echo "make demo     sample digits with eager, torch.compile and laconic; pictures and report in demo-output/"
	@echo "make test     install what the tests need and run them"
	@echo "make zoo      search every architecture of the model zoo, prove every site, write docs/zoo.md (a quarter of an hour)"
	@echo "make outside  the same for models of some sixty other libraries and the rest of transformers, timm and diffusers; docs/outside.md (an hour)"
	@echo "make matrix   every cache policy on six architectures through Inductor, 3 x 50 steps (half an hour)"
	@echo "make lint     ruff and mypy"
	@echo "make gpu      GPU tests and benchmarks, on a CUDA machine with torch and Triton installed (no network)"
	@echo "make kernels  compile every Triton kernel for every target; registers, spills and shared memory"

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) --editable '.[examples,report]'
	@touch $@

$(VENV)/.test: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) --editable '.[test,examples,report]'
	@# torchvision and timm would pull a CUDA build of torch; the tests need only their Python.
	$(PIP) --no-deps torchvision==0.28.0 timm==1.0.31
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) --editable '.[lint]'
	@touch $@

$(VENV)/.outside: $(VENV)/.test tests/zoo/libraries.txt
	@# Never their dependencies: many would bring another torch. The models of torchaudio are Python; its binaries need CUDA.
	$(PIP) --no-deps --requirement tests/zoo/libraries.txt
	rm -f $(VENV)/lib/python*/site-packages/torchaudio/lib/*.so
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.test
	OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q tests

zoo: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.zoo.report

outside: $(VENV)/.outside
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.zoo.libraries_report

matrix: $(VENV)/.test
	$(BIN)/python benchmarks/policy_matrix.py

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy wants a folder named like the package; a clone may be called anything.
	@mkdir -p .typecheck && ln -sfn .. .typecheck/laconic
	cd .typecheck && ../$(BIN)/mypy -p laconic

gpu:
	$(PYTHON) -m pytest -q -m gpu tests/gpu -p no:cacheprovider
	$(PYTHON) benchmarks/gpu.py

kernels: $(VENV)/.test
	$(BIN)/python -m laconic kernels

clean:
	rm -rf $(VENV) .typecheck demo-output laconic-debug build *.egg-info
