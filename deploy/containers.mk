# Included by the Makefile at the root, whose variables it uses.
.PHONY: lint-containers test-containers

lint-containers: $(READY)  ## check Dockerfile, compose files, alert rules, dashboard and scripts; part of test
	@$(BIN)/python -m pytest -q -m "not containers" tests/deploy

# Root on Debian 12; installs packages there. Fails, and never skips, when something cannot be had.
test-containers: $(READY)  ## build the image and run the stack with docker compose
	@deploy/ci/compose_e2e.sh $(BIN)/python
	@CONTAINER_TESTS=1 $(BIN)/python -m pytest -q -m "not containers" tests/deploy
