# The commands of this project; `make help` lists them.

export NO_MKDOCS_2_WARNING = 1
BIN := .venv/bin

.PHONY: help serve build test lint format page bench font theme
.DEFAULT_GOAL := help

help: ## List the commands
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

serve: .venv/site ## Serve the site on http://127.0.0.1:8000, with live reload
	$(BIN)/mkdocs serve

build: .venv/site ## Build the site into site/, where it replaces the last good one
	rm -rf .build
	$(BIN)/mkdocs build --strict --site-dir .build
	test -s .build/search/search_index.json # what MkDocs writes last
	$(BIN)/python -m extensions.export .build
	rm -rf site && mv .build site

test: .venv/test ## Test everything, or what PYTEST_ARGS="docs/quick_notes.md" names
	$(BIN)/pytest $(if $(filter docs/% tests/%,$(PYTEST_ARGS)),,--numprocesses auto) $(PYTEST_ARGS)

lint: .venv/site ## Check style and types, also of the blocks on pages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m tests.page_style
	$(BIN)/mypy

format: .venv/site ## Format all Python, also the blocks on pages
	$(BIN)/ruff format
	$(BIN)/python -m tests.page_style --write

page: ## Lay down a new page: make page ROOM=foundations NAME=symmetry
	python3 -m tests.new_page $(ROOM)/$(NAME)

bench: .venv/test ## Measure speed and memory, as ratios within one run
	for script in tests/bench/bench_*.py; do PYTHONPATH=. $(BIN)/python $$script || exit 1; done

FONT := docs/assets/fonts/latin-modern-math-subset.woff2
font: .venv/test ## Cut the math font again, from a latinmodern-math.otf here
	$(BIN)/pyftsubset latinmodern-math.otf --output-file=$(FONT) --flavor=woff2 \
	  --unicodes-file=docs/assets/fonts/characters.txt --layout-features= --no-hinting \
	  --desubroutinize --name-IDs='*'

theme: .venv/test ## Leave out of the theme's stylesheets what no page uses
	$(BIN)/python -m tests.trim_theme

# torch by its version alone: its files differ by machine, with CUDA and without. All
# else by its hash; the two lists are complete, so pip adds nothing to them.
LISTED := --quiet --no-deps --require-hashes --requirement
.venv/site: requirements.txt pyproject.toml
	test -x $(BIN)/python || python3 -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install $(LISTED) requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# verl names the versions of Python that it runs on; the tests only read its files.
.venv/test: tests/peers/requirements.txt .venv/site
	$(BIN)/pip install --ignore-requires-python $(LISTED) tests/peers/requirements.txt
	touch $@
