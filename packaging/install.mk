# From what was built to where it belongs: `make install`, and packages of that. Included by the Makefile beside it.

# `make install`: where things go. Every directory can be set; PREFIX=/usr is what packages say.
PREFIX ?= /usr/local
prefix ?= $(PREFIX)
bindir ?= $(prefix)/bin
datadir ?= $(prefix)/share
mandir ?= $(datadir)/man
docdir ?= $(datadir)/doc/receptord
sysconfdir ?= /etc
# receptord looks here when it is built with RECEPTOR_PLUGIN_DIR=$(plugindir); without, in /usr/lib and /usr/local/lib.
plugindir ?= $(prefix)/lib/receptor/plugins
unitdir ?= $(prefix)/lib/systemd/system
userunitdir ?= $(prefix)/lib/systemd/user
presetdir ?= $(prefix)/lib/systemd/system-preset
userpresetdir ?= $(prefix)/lib/systemd/user-preset
catalogdir ?= $(prefix)/lib/systemd/catalog
sysusersdir ?= $(prefix)/lib/sysusers.d
tmpfilesdir ?= $(prefix)/lib/tmpfiles.d
# Such as /etc/apparmor.d, where the system has AppArmor.
apparmordir ?=
bashdir ?= $(datadir)/bash-completion/completions
zshdir ?= $(datadir)/zsh/site-functions
fishdir ?= $(datadir)/fish/vendor_completions.d

# PROFILE=debug packages what `cargo build` made: good enough for a test.
PROFILE ?= release
BUILD ?= target/$(PROFILE)
PROGRAMS := $(addprefix $(BUILD)/,receptord receptorctl echo runner)
PAGES ?= $(BUILD)/pages
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)

.PHONY: pages install deb rpm packages reproducible dist

# Where a program was built does not stand in it, so that two who build the same have the same.
CARGO_DIR := $(or $(CARGO_HOME),$(HOME)/.cargo)
PLACES := $(CURDIR)=/usr/src/receptor $(CARGO_DIR)=/usr/src/cargo
# with(flags that are there, these, too)
with = $(if $(findstring $(2),$(1)),$(1),$(strip $(1) $(2)))
build bench $(PROGRAMS): export RUSTFLAGS := $(call with,$(RUSTFLAGS),$(PLACES:%=--remap-path-prefix=%))
build bench $(PROGRAMS): export CFLAGS := $(call with,$(CFLAGS),$(PLACES:%=-ffile-prefix-map=%))

# Programs that are there are taken as they are: who packages has built them.
$(PROGRAMS):
	$(CARGO) build $(if $(filter debug,$(PROFILE)),,--profile $(PROFILE)) --workspace --bins --locked

# Made by the build: whoever installs may have no cargo.
$(BUILD)/THIRD-PARTY-LICENSES: Cargo.lock packaging/third-party.py
	CARGO="$(CARGO)" $(PYTHON) packaging/third-party.py >$@.$$$$ && mv $@.$$$$ $@

pages: $(PROGRAMS) ## manual pages and completions in target/release/pages
	rm -rf $(PAGES)
	$(BUILD)/receptord --pages $(PAGES)
	$(BUILD)/receptorctl pages $(PAGES)
	cat packaging/man/receptord.8.tail >>$(PAGES)/man/receptord.8
	cat packaging/man/receptorctl.1.tail >>$(PAGES)/man/receptorctl.1
	sed 's/@VERSION@/$(VERSION)/' packaging/man/receptord.toml.5.in >$(PAGES)/frame.5
	sed 's/@VERSION@/$(VERSION)/' packaging/man/receptor-plugin.7.in >$(PAGES)/frame.7
	$(PYTHON) packaging/man/pages.py settings $(PAGES)/frame.5 packaging/receptord.toml >$(PAGES)/man/receptord.toml.5
	$(PYTHON) packaging/man/pages.py markdown $(PAGES)/frame.7 receptord/proto/PROTOCOL-plugin.md >$(PAGES)/man/receptor-plugin.7

# put(files, directory, mode)
put = $(if $(wildcard $(1)),install -d "$(DESTDIR)$(2)" && install -m $(or $(3),0644) $(wildcard $(1)) "$(DESTDIR)$(2)")
# put_as(file, path)
put_as = $(if $(wildcard $(1)),install -D -m 0644 $(1) "$(DESTDIR)$(2)")
# put_units(files, directory): with the paths of programs as they are installed
put_units = $(call put,$(1),$(2))$(if $(wildcard $(1)), && \
	sed -i 's|/usr/bin/receptor|$(bindir)/receptor|g' $(patsubst %,"$(DESTDIR)$(2)/%",$(notdir $(wildcard $(1)))))

install: pages $(BUILD)/THIRD-PARTY-LICENSES ## programs, plugins, units, pages and the default configuration, below DESTDIR
	$(call put,$(BUILD)/receptord $(BUILD)/receptorctl,$(bindir),0755)
	$(call put,$(BUILD)/echo $(BUILD)/runner,$(plugindir),0755)
	$(call put_units,$(addprefix systemd/*.,service socket slice target),$(unitdir))
	$(call put_units,$(addprefix systemd/user/*.,service socket slice target),$(userunitdir))
	$(call put_as,systemd/receptor.preset,$(presetdir)/80-receptor.preset)
	$(call put_as,systemd/user/receptor.preset,$(userpresetdir)/80-receptor.preset)
	$(call put_as,systemd/receptor.catalog,$(catalogdir)/receptor.catalog)
	$(call put_as,systemd/receptor.sysusers,$(sysusersdir)/receptor.conf)
	$(call put_as,systemd/receptor.tmpfiles,$(tmpfilesdir)/receptor.conf)
	$(if $(apparmordir),$(call put,packaging/apparmor/receptord,$(apparmordir)))
	for section in 1 5 7 8; do \
		install -d "$(DESTDIR)$(mandir)/man$$section" && \
		install -m 0644 $(PAGES)/man/*.$$section "$(DESTDIR)$(mandir)/man$$section"; \
	done
	install -d "$(DESTDIR)$(bashdir)" "$(DESTDIR)$(zshdir)" "$(DESTDIR)$(fishdir)"
	install -m 0644 $(PAGES)/bash/* "$(DESTDIR)$(bashdir)"
	install -m 0644 $(PAGES)/zsh/* "$(DESTDIR)$(zshdir)"
	install -m 0644 $(PAGES)/fish/* "$(DESTDIR)$(fishdir)"
	# The administrator's own file is left alone.
	install -d "$(DESTDIR)$(sysconfdir)/receptor/receptord.toml.d" "$(DESTDIR)$(sysconfdir)/receptor/plugins"
	test -e "$(DESTDIR)$(sysconfdir)/receptor/receptord.toml" \
		|| install -m 0644 packaging/receptord.toml "$(DESTDIR)$(sysconfdir)/receptor/receptord.toml"
	$(call put,README.md CHANGELOG.md LICENSE THREAT-MODEL.md docs/*.md,$(docdir))
	install -D -m 0644 $(BUILD)/THIRD-PARTY-LICENSES "$(DESTDIR)$(datadir)/doc/receptorctl/THIRD-PARTY-LICENSES"
	$(call put,plugins/examples/README.md systemd/examples/*,$(docdir)/examples)
	$(call put,$(filter-out %.md,$(wildcard plugins/examples/*)),$(docdir)/examples,0755)

# What two builds are to agree on.
deb rpm dist: export SOURCE_DATE_EPOCH ?= $(shell date -d "$$(sed -n 's/^ -- .*>  //p;T;q' packaging/debian/changelog)" +%s)
# Of a package for a test of an upgrade.
PACKAGE_VERSION ?= $(VERSION)
PACKAGES := target/packages

deb: $(PROGRAMS) ## Debian packages of target/release, in target/packages
	rm -rf target/deb $(addprefix $(PACKAGES)/*.,deb changes buildinfo)
	mkdir -p target/deb/receptor $(PACKAGES)
	cp -r packaging/debian target/deb/receptor/debian
	sed -i '1s/(.*)/($(PACKAGE_VERSION)-1~receptor1)/' target/deb/receptor/debian/changelog
	cd target/deb/receptor && TOP=$(CURDIR) BUILD=$(abspath $(BUILD)) dpkg-buildpackage -b -d -us -uc >../log 2>&1 || { tail -n 40 ../log; exit 1; }
	mv target/deb/*.deb target/deb/*.changes target/deb/*.buildinfo $(PACKAGES)

# On a system without the macros of systemd ours take their place.
RPM_MACROS := $(if $(shell rpm --eval '%{?_unitdir}'),,--load $(CURDIR)/packaging/rpm/macros.debian)

rpm: $(PROGRAMS) ## RPM packages of target/release, in target/packages
	rm -rf target/rpm $(PACKAGES)/*.rpm
	mkdir -p $(PACKAGES)
	BUILD=$(abspath $(BUILD)) rpmbuild -bb --nodeps --build-in-place --with prebuilt $(RPM_MACROS) \
		--define '_topdir $(CURDIR)/target/rpm' --define '_rpmdir $(CURDIR)/$(PACKAGES)' --define '_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm' \
		--define 'package_version $(PACKAGE_VERSION)' packaging/rpm/receptor.spec >target/rpm.log 2>&1 || { tail -n 40 target/rpm.log; exit 1; }

packages: deb rpm ## both, looked over by lintian and rpmlint, and made a second time, which gives the same bytes
	lintian --fail-on error,warning --tag-display-limit 0 $(PACKAGES)/*.changes
	rpmlint --strict --config packaging/rpm/rpmlint.toml $(PACKAGES)/*.rpm packaging/rpm/receptor.spec
	apparmor_parser -QTK packaging/apparmor/receptord
	$(MAKE) deb rpm PACKAGES=target/again
	for file in target/again/*.deb target/again/*.rpm; do cmp $$file $(PACKAGES)/$${file##*/} || exit 1; done
	rm -r target/again

reproducible: deb rpm ## what is committed, compiled once more in another directory with another CARGO_HOME, gives the same packages: takes as long as a build
	rm -rf target/elsewhere
	mkdir -p target/elsewhere/receptor target/elsewhere/cargo
	cp -r --reflink=auto $(CARGO_DIR)/. target/elsewhere/cargo
	git -c tar.umask=0022 archive HEAD | tar -x -C target/elsewhere/receptor
	env -u RUSTFLAGS -u CFLAGS -u MAKEFLAGS CARGO_HOME=$(CURDIR)/target/elsewhere/cargo $(MAKE) -C target/elsewhere/receptor deb rpm
	for file in $(PACKAGES)/*.deb $(PACKAGES)/*.rpm; do cmp $$file target/elsewhere/receptor/$$file || exit 1; done
	rm -r target/elsewhere

dist: ## the sources with everything that they need, to build without network: target/packages/receptor-VERSION.tar.xz
	rm -rf target/dist
	mkdir -p target/dist/receptor-$(VERSION)/.cargo $(PACKAGES)
	git archive HEAD | tar -x -C target/dist/receptor-$(VERSION)
	cd target/dist/receptor-$(VERSION) && $(CARGO) vendor --locked --versioned-dirs vendor >>.cargo/config.toml 2>../log || { cat ../log; exit 1; }
	cp -r packaging/debian target/dist/receptor-$(VERSION)/debian
	tar -C target/dist --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime=@$(SOURCE_DATE_EPOCH) \
		-cJf $(PACKAGES)/receptor-$(VERSION).tar.xz receptor-$(VERSION)
	rm -rf target/dist
