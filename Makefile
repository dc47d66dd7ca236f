# SPDX-License-Identifier: GPL-2.0-only
# The verbs of the harness; README says more.

SHELL := /bin/bash
H := harness
export KERNEL MIRROR FORCE

# The plans of the test command, MACHINE:KERNEL:SUITE.
CHECK := amd:default:kvm amd:default:xen intel:default:intel amd-no-master-clock:default:clocks \
	 amd-vls:default:svm amd-mt:default:mt
LONG  := amd:default:slow amd:default:xen-slow amd:debug:core-amd amd:debug:xen intel:debug:core-intel-debug \
	 amd:rt:xen amd:rt:core-amd amd:kcsan:core-amd amd:sev:hooks amd-mt:default:mt-xen intel-smp:default:vmx-pages intel:lockdep:vmx-pages
# Those for a posting, on the base and what it stands on.
POSTED := amd:default:kvm amd:default:kunit amd:default:xen-default
PLANS ?= $(if $(POSTING),$(POSTED),$(CHECK))
RUNFLAGS = $(if $(FILTER),--filter '$(FILTER)') $(if $(V),-v) $(if $(JUNIT),--junit '$(JUNIT)') \
	   $(if $(ARGS),--args '$(ARGS)') $(if $(APPEND),--append '$(APPEND)') \
	   $(if $(TIMEOUT),--timeout $(TIMEOUT))

.PHONY: help run check check-series check-posting check-long test list lint selftest tree export \
	postings post churn kernel base-test bench cross litmus each static planted deps clean distclean

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' Makefile | \
		while IFS='|' read -r v t; do printf '  make %-12s %s\n' "$$v" "$$t"; done

run: ## the main job: base, series, kernel, selftests, a Xen HVM guest on it, a report
	@t0=$$SECONDS; set -e; \
	$(H)/deps; $(H)/tree; $(H)/kernel series default; $(H)/image series default; \
	rc=0; $(H)/run.py amd:default:xen-default || rc=$$?; \
	$(H)/report.py build/results/last $$((SECONDS - t0)); exit $$rc

check: $(if $(POSTING),check-posting,check-series) ## the tests: lint, the harness's own, both vendors, the Xen guest matrix; or of POSTING=name

check-posting:
	@set -e; $(H)/deps; $(H)/tree; $(H)/tree posting '$(POSTING)'; \
	$(H)/kernel posting default; $(H)/image posting default; \
	$(H)/run.py --tree posting $(RUNFLAGS) $(PLANS)

check-series:
	@t0=$$SECONDS; set -e; \
	$(H)/deps; $(H)/lint; $(H)/tree; $(H)/tests/run; \
	$(H)/kernel series default; $(H)/image series default; \
	echo "check: built after $$((SECONDS - t0)) s"; \
	$(H)/run.py --limit $$((5100 - SECONDS + t0)) $(RUNFLAGS) $(PLANS)

check-long: ## KASAN and lockdep, PREEMPT_RT, KCSAN; the selftests that take minutes each
	@$(MAKE) -s test PLANS='$(LONG)'

test: kernel ## some plans only: make test PLANS='amd:debug:xen' FILTER=nomsi V=1 JUNIT=file
	@$(H)/run.py $(RUNFLAGS) $(PLANS)

list: ## the tests of the plans, a line each
	@$(H)/run.py --list $(RUNFLAGS) $(PLANS)

lint: ## the series without building it: files, git am, checkpatch, changelogs
	@$(H)/lint

selftest: ## the harness's own tests; no machine is booted
	@$(H)/tests/run

tree: ## build/linux: the base, then a commit a patch and a branch a posting; work there
	@$(H)/tree

export: ## build/linux back to patches/, series and the kernel's folders
	@$(H)/export

postings: ## a line a posting: patches, lines, what for, what it stands on
	@$(H)/postings

post: ## the mails of POSTING=name, in build/post/name: letter, patches, recipients
	@$(H)/tree; $(H)/post '$(POSTING)'

churn: ## how many of the lines that each patch adds are deleted by later ones
	@$(H)/tree; $(H)/lines.py churn "$${KVM_GPC_BUILD:-build}/linux" refs/kvm-gpc/base

kernel: tree ## the kernels and selftests that PLANS want
	@set -e; for k in default $$(printf '%s\n' $(PLANS) | cut -d: -f2 | grep -vx default | sort -u); do \
		$(H)/kernel series $$k; $(H)/image series $$k; done

base-test: ## the plans on the base, with the series' selftests: what fails there?
	@set -e; $(H)/tree; $(H)/tree base; \
	for k in default $$(printf '%s\n' $(PLANS) | cut -d: -f2 | grep -vx default | sort -u); do \
		$(H)/kernel series $$k; $(H)/kernel base $$k; $(H)/image base $$k; done; \
	$(H)/run.py --tree base $(RUNFLAGS) $(PLANS)

each: ## every patch builds on its own: gcc and clang, =y and =m, i386, ...; POSTING=name, ENDS=1, ONLY=regex
	@$(H)/deps all; $(H)/tree; $(if $(POSTING),$(H)/tree posting '$(POSTING)';) POSTING='$(POSTING)' $(H)/each

static: ## sparse, W=1, kernel-doc and htmldocs: nothing new against the base
	@$(H)/deps all; $(H)/tree; $(H)/tree base; $(H)/static

cross: ## KVM of the other architectures, on base and series: nothing that the base had not; ARCHS='ppc64 arm64 ...'
	@$(H)/deps all; $(H)/tree; $(H)/cross

bench: ## base and series side by side: instructions, and time on two CPUs
	@set -e; $(H)/deps all; $(H)/tree; $(H)/tree base; \
	for t in series base; do $(H)/kernel $$t default; $(H)/image $$t default; done; \
	$(H)/bench.py

planted: ## bugs planted in the kernel, one at a time: is each found? ONLY=regex, POSTING=name
	@$(H)/tree; $(H)/planted.py $(if $(ONLY),--only '$(ONLY)') $(if $(POSTING),--posting '$(POSTING)')

litmus: ## the litmus tests, by herd7, and that each barrier of theirs is needed
	@$(H)/deps; $(H)/tree; $(H)/litmus

deps: ## install what the harness needs (root or sudo)
	@$(H)/deps

clean: ## remove what was built, but not the work tree
	rm -rf build/series-* build/base build/posting build/post build/results build/each build/static build/cross \
		build/planted

distclean: ## remove build/ whole; work in build/linux that was not exported is lost
	rm -rf build
