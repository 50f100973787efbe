"""Tests of Receptor on booted nodes, named after the points of docs/systemd.md.

Owns what they have in common: a node in which Receptor is installed, from which every node of a test starts, and a test case
with nodes of its own. A test waits for conditions, never for a time to pass.
"""

import json
import os
import subprocess
import time
import unittest
from pathlib import Path

import rig

ROOT = Path(__file__).resolve().parents[3]
# Where the programs were built: target/release unless the caller says otherwise.
PROGRAMS = Path(os.environ.get("RECEPTOR_PROGRAMS", ROOT / "target/release"))
# Where `make deb` and `make rpm` left theirs, for those who test these.
PACKAGES = Path(os.environ["RECEPTOR_PACKAGES"]) if "RECEPTOR_PACKAGES" in os.environ else None
NAMES = ["receptord", "receptorctl", "receptor-plugin-runner"]
# Long enough for a machine on which everything takes ten times as long; nothing waits for its end unless it fails.
PATIENCE = 60

SOCKET = "/run/receptor/receptord.sock"
CONFIGURATION = "/etc/receptor/receptord.toml.d"
SERVICE, CONTROL, MESH = "receptord.service", "receptord-control.socket", "receptord-mesh.socket"

# Of the suite that is tested in this process.
installed = None
version = None


def prepare(home, suite, systemd):
    """Makes the node that all nodes of tests start from: what a host is after the installation."""
    global installed, version
    version = systemd
    node = home.node("install", suite=suite)
    node.boot()
    install(node)
    installed = home.keep(node, home.directory / "installed")


def install(node):
    """As an administrator does: with the packages; without any, which is quicker to try, with `make install`."""
    if PACKAGES:
        install_packages(node, *(package(name) for name in NAMES))
        return
    staged = node.directory / "staged"
    rig.command("make", "-s", "-C", ROOT, "install", f"DESTDIR={staged}", f"PAGES={node.directory}/pages", f"BUILD={PROGRAMS}", "PREFIX=/usr")
    for program in ["bin/receptord", "bin/receptorctl", "lib/receptor/plugins/echo", "lib/receptor/plugins/runner"]:
        rig.command("strip", "-g", staged / "usr" / program)
    rig.command("cp", "-r", f"{staged}/.", node.path("/"))
    node.run("systemd-sysusers")
    node.run("systemd-tmpfiles", "--create", "receptor.conf")
    node.run("journalctl", "--update-catalog")
    node.run("systemctl", "daemon-reload")
    node.run("systemctl", "preset", SERVICE, CONTROL, MESH)


def package(name):
    """The package of that name that was made last."""
    found = sorted(PACKAGES.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise rig.Failure(f"no package {name} in {PACKAGES}: run make deb")
    return found[-1]


def install_packages(node, *files):
    for file in files:
        node.write(f"/root/{file.name}", file.read_bytes())
    # Syncing what lies in memory only costs time.
    node.run("dpkg", "--force-unsafe-io", "--install", *(f"/root/{file.name}" for file in files))


class Case(unittest.TestCase):
    """Tests that share nodes: `a`, and with NODES = 3 also `b` and `c`, in a chain. Every test begins with nodes as after their
    installation; with BARE = True nothing is installed, and nothing is put back between tests."""

    NODES = 1
    BARE = False

    @classmethod
    def setUpClass(cls):
        cls.session = rig.Session(f"{os.getpid()}-{cls.__name__.lower()[:12]}")
        cls.addClassCleanup(cls.session.close)
        cls.nodes = [cls.session.node(name, layers=installed[cls.BARE:]) for name in "abc"[: cls.NODES]]
        cls.links = [cls.session.link(*pair) for pair in zip(cls.nodes, cls.nodes[1:])]
        cls.session.boot()
        for name, node in zip("abc", cls.nodes):
            setattr(cls, name, node)

    def setUp(self):
        for node in self.nodes:
            if node.is_up() and not self.BARE:
                restore(node)
        self.began = int(time.time())

    def journals(self):
        """What the nodes had to say during this test, for whoever looks why it failed."""
        for node in self.nodes:
            yield node.name, node.journal("-o", "short-precise", f"--since=@{self.began}")

    # Waiting

    def until(self, condition, what=None):
        """Waits until the condition is something; returns that. A `Failure` of a command in it only means that it is not yet."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                found, why = condition(), ""
            except rig.Failure as failure:
                found, why = None, failure
            if found:
                return found
            if time.monotonic() > deadline:
                self.fail(f"not within {PATIENCE} s: {what or condition} {why}")
            time.sleep(0.05)

    # What systemd says

    def show(self, name, unit=SERVICE, node=None):
        """A property of a unit."""
        return (node or self.a).out("systemctl", "show", "--value", f"--property={name}", unit)

    def pid(self, unit=SERVICE, node=None):
        return int(self.show("MainPID", unit, node))

    def is_active(self, unit, node=None):
        return self.show("ActiveState", unit, node) == "active"

    def entries(self, *matches, node=None):
        """Entries of the journal, as they are stored."""
        text = (node or self.a).journal("-o", "json", *matches)
        return [json.loads(line) for line in text.splitlines()]

    # What an administrator does

    def systemctl(self, *words, node=None, **options):
        return (node or self.a).run("systemctl", *words, **options)

    def configure(self, text, node=None, name="50-test.toml"):
        (node or self.a).write(f"{CONFIGURATION}/{name}", text)

    def link_nodes(self):
        """Two nodes, "east" and "west", with a link."""
        self.configure('node-id = "east"\n[[listen]]\nurl = "rnp://[::]:8888"\nallow-plaintext = true\n')
        self.configure('node-id = "west"\n[[peer]]\nurl = "rnp://a:8888"\nallow-plaintext = true\n', node=self.b)
        for node in self.nodes:
            self.systemctl("restart", SERVICE, node=node)
        self.until(lambda: self.ctl("ping", "west"), "a link")

    def link_chain(self):
        """Three nodes, named as their hosts: "c" dials "b", and "b" dials "a"."""
        listen = '[[listen]]\nurl = "rnp://[::]:8888"\nallow-plaintext = true\n'
        peer = '[[peer]]\nurl = "rnp://{}:8888"\nallow-plaintext = true\n'
        for node, links in [(self.a, listen), (self.b, listen + peer.format("a")), (self.c, peer.format("b"))]:
            self.configure(f'node-id = "{node.name}"\n{links}', node=node)
            self.systemctl("restart", SERVICE, node=node)
        self.until(lambda: self.ctl("ping", "c", "--timeout", "1"), "a way through the chain")

    def edit(self, unit, text, node=None):
        """As `systemctl edit --runtime`."""
        node = node or self.a
        node.write(f"/run/systemd/system/{unit}.d/test.conf", text)
        node.run("systemctl", "daemon-reload")

    def ctl(self, *words, node=None, **options):
        return (node or self.a).run("receptorctl", *words, **options)

    def plugins(self):
        listed = json.loads(self.ctl("--json", "plugin", "list").stdout)["plugins"]
        return {plugin["name"]: plugin for plugin in listed}

    def status(self, node=None):
        return json.loads(self.ctl("--json", "status", node=node).stdout)


RESTORE = """
systemctl stop 'receptord*' 'receptor-worker*' 2>/dev/null
rm -rf /run/systemd/system/receptor*.d /etc/systemd/system/receptor*.d /etc/receptor/receptord.toml.d /run/receptor/receptord.toml.d \
    /usr/lib/receptor/receptord.toml.d /etc/receptor/plugins/* /etc/receptor@* /var/lib/receptor /var/lib/receptor@*
systemd-tmpfiles --create receptor.conf
systemctl daemon-reload
systemctl reset-failed
systemctl start receptor-worker.socket receptord-control.socket receptord.service
"""


def restore(node):
    """Everything as after the installation, with an empty spool."""
    node.run("sh", "-c", RESTORE)
