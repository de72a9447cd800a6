# Gridstead: `make help` lists what there is.
SHELL := /bin/sh
.DEFAULT_GOAL := help
export GRIDSTEAD_BUNDLE := $(abspath $(or $(GRIDSTEAD_BUNDLE),bundle))
export PATH := $(abspath .venv/bin):$(PATH)
export ANSIBLE_CONFIG := $(abspath ansible.cfg)
GRIDSTEAD_ROOT ?= $(if $(filter 0,$(shell id -u)),/var/lib/gridstead-local,$(HOME)/.gridstead)
export GRIDSTEAD_ROOT
GRIDSTEAD := $(GRIDSTEAD_ROOT)/opt/gridstead/bin/gridstead
INVENTORY ?= inventories/local
PLAYBOOK = ansible-playbook -i $(INVENTORY)
PYTEST = python -m pytest --durations=25 --durations-min=5 --junit-xml=build/$@.xml

help: ## What there is
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\n  Settings: GRIDSTEAD_ROOT (now %s), GRIDSTEAD_PORT_OFFSET (0, 1000, 2000 or 3000),\n  GRIDSTEAD_SIZE (small, medium, large), GRIDSTEAD_BUNDLE, INVENTORY.\n' '$(GRIDSTEAD_ROOT)'

up: bundle ## Install and start everything on this machine, run the main job, show the answer
	$(PLAYBOOK) playbooks/site.yml
	@tools/first-answer.sh $(GRIDSTEAD)

bundle: bootstrap ## Resolve and verify every server and library once
	@python tools/bundle.py build

bootstrap:
	@tools/bootstrap.sh

down: bootstrap ## Stop everything; the data stays
	$(PLAYBOOK) playbooks/down.yml

clean: bootstrap ## Stop everything and delete the appliance with its data, after asking
	@$(PLAYBOOK) playbooks/clean.yml

status: ## Every service, its health, and the lag of each stage
	@$(GRIDSTEAD) status

report: ## The transfer statistics
	@$(GRIDSTEAD) report

replay: ## Replay FILE="…" (JSON lines of events, or captured packets) through the pipeline
	@$(GRIDSTEAD) replay $(or $(FILE),$(error say what to replay: make replay FILE=path)) --wait

smoke: bootstrap ## Prove that every server works and that events come out exactly
	@mkdir -p build
	@$(GRIDSTEAD) smoke --junit build/smoke.xml

BENCH = mkdir -p build/bench; python tests/bench
CONFIG = --config $(GRIDSTEAD_ROOT)/etc/gridstead/gridstead.toml --output build/bench

bench: test-environment ## Measure on the running appliance, over an hour; writes build/bench/*.json
	@$(BENCH)/bench_bridge.py $(CONFIG)
	@$(BENCH)/bench_serving.py $(CONFIG)
	@$(BENCH)/bench_stream.py $(CONFIG)
	@$(BENCH)/bench_batch.py $(CONFIG)
	@$(BENCH)/bench_identity.py --output build/bench
	@$(BENCH)/bench_ingest.py --output build/bench
	@echo 'Next: tools/figures.py add build/bench/FILE… puts results into docs/reference/figures.md'

EC2 = ANSIBLE_DISPLAY_OK_HOSTS=true ANSIBLE_LOCALHOST_WARNING=false \
	CLUSTER=$(abspath $(or $(CLUSTER),$(error say which: make $@ CLUSTER=clusters/small.yml))) \
	ansible-playbook -i inventories/ec2

ec2-plan: bootstrap ## What ec2-up would do to the cluster of CLUSTER=FILE in the AWS account, and the price
	@$(EC2)/control.yml playbooks/ec2-plan.yml

ec2-up: bootstrap ## Make the cluster of CLUSTER=FILE, or make it whole, after asking
	@$(EC2)/control.yml playbooks/ec2-up.yml

ec2-install: bundle ## Install the appliance on the nodes of CLUSTER=FILE, over SSH through the bastion; again where nodes came or went
	@$(EC2) playbooks/site.yml

ec2-smoke: bootstrap ## Prove that the installed cluster of CLUSTER=FILE works, by the smoke tests on its gateway
	@$(EC2) playbooks/ec2-smoke.yml

ec2-scale: bootstrap ## As many nodes as CLUSTER=FILE says, or first GROUP=worker COUNT=5, after asking; nodes that go are drained
	@$(EC2)/control.yml playbooks/ec2-scale.yml

ec2-stop: bootstrap ## Stop the nodes of CLUSTER=FILE; what is on their volumes stays
	@$(EC2)/control.yml playbooks/ec2-stop.yml

ec2-start: bootstrap ## Start them again
	@$(EC2)/control.yml playbooks/ec2-start.yml

ec2-down: bootstrap ## Remove the cluster of CLUSTER=FILE with its data, after asking for its name
	@$(EC2)/control.yml playbooks/ec2-down.yml

charts: bootstrap ## Make the charts of Helm in build/charts
	@python tools/charts.py build
	@echo 'Next: helm install gridstead build/charts/gridstead; docs/operations/kubernetes.md'

IMAGES ?= build/images
KUBE = python tests/lab/kube.py

images: bundle ## Build the images of the containers, or PUSH=registry/prefix the ones that are built
	@mkdir -p build
	@if [ -z "$(PUSH)" ] && command -v go >/dev/null; then python tools/bundle.py build victoriametrics; fi # that of the store of metrics
	@images/build.py --output $(IMAGES) $(if $(PUSH),--push $(PUSH))

kube-up: bootstrap ## A Kubernetes on this machine, of NODES=3 nodes, with the images that are built
	@$(KUBE) up $(if $(NODES),--nodes $(NODES))
	@test ! -e $(IMAGES)/index.json || $(KUBE) load $(IMAGES)
	@echo "Next: export KUBECONFIG=$$($(KUBE) kubeconfig)"

kube-down: bootstrap ## Remove it without a trace
	@$(KUBE) down

test-environment: bundle
	@tools/test-environment.sh

lint: test-environment ## Every linter
	ruff check .
	yamllint --strict .
	ansible-lint --offline
	shellcheck .ci/run tools/*.sh tests/lab/*.sh images/files/run roles/*/files/*.sh charts/*/files/*.sh
	mypy

test: lint ## Every test that fits this machine's time: unit, roles, integration, faults
	@mkdir -p build
	$(PYTEST) -m 'not long'

test-all: lint images ## Every test, also those of whole systems on hosts of their own
	@mkdir -p build
	$(PYTEST)

docs: test-environment ## Write the roles' READMEs, the data dictionary, the cost page and the values of the charts anew
	python tools/role_docs.py
	python tools/data_dictionary.py
	python tools/cost.py
	python tools/charts.py docs

lock: test-environment ## Write the requirement locks anew, after a wanted change of requirements/*.in
	@tools/lock.sh

.PHONY: images kube-up kube-down ec2-plan ec2-up ec2-install ec2-smoke ec2-scale ec2-stop ec2-start ec2-down help up bundle bootstrap down clean status report replay smoke bench test-environment charts lint test test-all docs lock
