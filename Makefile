# Two commands do everything on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
TEST_PROCESSES ?= 2
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt scripts/setup.sh hatch_build.py pipeline/image/jpeg_region/region.c pipeline/image/jpeg_region/huffman.h pipeline/image/average64.c cluster/audit/search/hamming.c

.PHONY: demo test check docs sbom format clean
demo: $(VENV)/run-ready  ## the whole product on this machine; DATA=FOLDER for your own class folders
	$(BIN)/cluster demo $(if $(DATA),--data "$(DATA)") $(DEMO_OPTIONS)

test: $(VENV)/dev-ready  ## all tests; TESTS=... to choose
	@alone=0; $(BIN)/python -m pytest -m alone $(TESTS) || alone=$$?; shared=0; $(BIN)/python -m pytest -m "not alone" \
	    --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(TESTS) || shared=$$?; \
	    [ $$alone$$shared = 00 ] || [ $$alone$$shared = 05 ] || [ $$alone$$shared = 50 ]  # 5: none is chosen

check: $(VENV)/dev-ready  ## format, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/dev-ready  ## the API reference, from the docstrings, into site/; and the drawing of the wings
	rm -rf site
	$(BIN)/python scripts/reference/build.py site
	$(BIN)/python scripts/architecture.py docs/architecture.svg

sbom: $(VENV)/dev-ready  ## what the environment is made of, its licences, and known weaknesses where PyPI answers; into dist/
	$(BIN)/python scripts/sbom.py dist
	-$(BIN)/pip-audit --local --progress-spinner off

format: $(VENV)/dev-ready  ## format and sort imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/run-ready: $(INPUTS)
	scripts/setup.sh $(VENV) ""
	touch $@

$(VENV)/dev-ready: $(INPUTS)
	scripts/setup.sh $(VENV) dev
	touch $@ $(VENV)/run-ready

clean:  ## the environment, the reference and the demonstration's folder
	rm -rf $(VENV) site bit-demo
