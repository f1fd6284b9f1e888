# Two commands do all the set-up on a fresh machine:
#   make quickstart   the main job on the built-in data: fine-tune, quantize, export, measure
#   make test         ruff, mypy --strict and all tests
# And one that needs Triton (Linux, some 600 MB), but no GPU:
#   make test-kernels the CUDA kernels through Triton's interpreter, then compiled for sm_90 as a
#                     model starts them
# Two run what is for a GPU without one: kernels are started and left undone (tests/dry_cuda); gcc is
# needed, and onnxruntime-gpu (250 MB), the second time torch's CUDA build, too (5 GB):
#   make test-cuda-provider   files for CUDA in ONNX Runtime's CUDA provider
#   make rehearse-cuda        the CUDA benchmarks at toy size, to see whether they come to their ends
# Two more open exported folders in other programs:
#   make test-optimum     optimum-onnx, in .venv-optimum: it pins transformers 4.57
#   make test-javascript  transformers.js and onnxruntime-node, in tests/javascript/node_modules
# TORCH_INDEX=URL takes torch from that index, e.g. one with CPU builds only (see README.md).

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
REHEARSED := $(VENV)-rehearsal/results
KERNELS := $(filter-out %_compile.py,$(wildcard tests/test_kernels*.py tests/test_engine*.py))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test test-kernels test-cuda-provider rehearse-cuda test-optimum test-javascript install

quickstart: $(VENV)/run.stamp
	$(BIN)/quantkit run builtin.yaml --overwrite

test: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# Triton's interpreter converts arrays in a way that numpy 2.4 no longer allows.
test-kernels: $(VENV)-kernels/stamp
	TRITON_INTERPRET=1 $(VENV)-kernels/bin/pytest -W "ignore:Conversion of an array" -W ignore::RuntimeWarning $(KERNELS)
	$(VENV)-kernels/bin/pytest tests/test_kernels_compile.py tests/test_engine_compile.py

test-cuda-provider: $(VENV)-cuda/stamp
	$(VENV)-cuda/bin/pytest tests/test_cuda_provider.py

rehearse-cuda: $(VENV)-rehearsal/stamp
	rm -rf $(REHEARSED)
	$(VENV)-rehearsal/bin/python -m tests.dry_cuda benchmarks/cuda_training.py --toy --results $(REHEARSED)
	$(VENV)-rehearsal/bin/python -m tests.dry_cuda benchmarks/cuda_speed.py --toy --minutes 30 --work $(REHEARSED) --results $(REHEARSED)

install: $(VENV)/run.stamp

test-optimum: .venv-optimum/stamp
	.venv-optimum/bin/pytest tests/test_optimum.py

.venv-optimum/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-optimum
	.venv-optimum/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(shell grep ^torch== constraints.txt)
	.venv-optimum/bin/python -m pip install --quiet --editable '.[train,cpu,dev,optimum]' 'transformers<5' 'huggingface-hub<1'
	touch $@

# Without the install scripts: onnxruntime-node's would fetch CUDA libraries, and the CPU's are inside.
test-javascript: $(VENV)/dev.stamp
	cd tests/javascript && npm install --ignore-scripts --no-audit --no-fund
	$(BIN)/pytest tests/test_javascript.py

$(VENV)/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) --editable '.[train,cpu]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) --editable '.[train,cpu,dev]'
	touch $@

# Without onnxruntime, whose files onnxruntime-gpu's would lie over.
$(VENV)-cuda/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-cuda
	$(VENV)-cuda/bin/pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(VENV)-cuda/bin/pip install --quiet --constraint constraints.txt --editable '.[train,dev]' $(subst onnxruntime,onnxruntime-gpu,$(shell grep ^onnxruntime== constraints.txt)) nvidia-cuda-runtime nvidia-cuda-crt
	touch $@

# torch 2.11 is the first that pyproject.toml allows; PyPI has it for CUDA 13, as onnxruntime-gpu.
$(VENV)-rehearsal/stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)-rehearsal
	$(VENV)-rehearsal/bin/pip install --quiet torch==2.11.0
	$(VENV)-rehearsal/bin/pip install --quiet --editable '.[train]' onnxruntime-gpu 'nvidia-cuda-crt==13.0.*'
	touch $@

$(VENV)-kernels/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-kernels
	$(VENV)-kernels/bin/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(VENV)-kernels/bin/pip install --quiet --editable '.[train,cpu,dev]' triton==3.6.0 'numpy<2.4'
	touch $@
