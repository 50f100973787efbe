"""What an administrator does with packages: install, upgrade while clients are at work, downgrade, remove, purge."""

import json
import re
import shutil
import subprocess
import unittest
from pathlib import Path

import rig
from points import CONTROL, MESH, NAMES, PACKAGES, PATIENCE, ROOT, SERVICE, Case, install_packages, package

of_packages = unittest.skipUnless(PACKAGES, "RECEPTOR_PACKAGES does not say where packages are")
NEWER = "99.0-1"

# One client after the other asks for the status; told to stop, it prints how many there were and what failed.
LOAD = """
import json, select, socket, sys
asked, failed = 0, []
while not select.select([sys.stdin], [], [], 0.005)[0]:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect("/run/receptor/receptord.sock")
            client.sendall(b"status\\n")
            lines = client.makefile()
            said = lines.readline(), lines.readline()
            if "NodeID" not in said[1]:
                failed.append(said)
    except OSError as error:
        failed.append(repr(error))
    asked += 1
    if asked == 1:
        print("began", flush=True)
print(json.dumps([asked, failed]))
"""


def with_version(file, version, directory):
    """The same package with another version."""
    tree = directory / "tree"
    rig.command("dpkg-deb", "--raw-extract", file, tree)
    control = tree / "DEBIAN/control"
    text = control.read_text()
    old = next(line.split()[1] for line in text.splitlines() if line.startswith("Version:"))
    control.write_text(text.replace(old, version))
    changed = directory / f"{file.name.split('_')[0]}_{version}.deb"
    rig.command("dpkg-deb", "--build", "-Znone", "--root-owner-group", tree, changed)
    shutil.rmtree(tree)
    return changed


def newer(session):
    """The packages as of a later version."""
    return [with_version(package(name), NEWER, session.directory) for name in NAMES]


# What any use of a node changes. Of users the backups are left out, and the users themselves are looked at elsewhere.
CHANGING = [
    "proc", "sys", "dev", "run", "tmp", "root", "var/log", "var/cache", "var/tmp", "var/lib/dpkg", "var/lib/systemd/catalog",
    "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/.pwd.lock",
]


def paths(node):
    """All paths of a node but those."""
    prune = [word for path in CHANGING for word in ["-path", f"/{path}", "-prune", "-o"]]
    return set(node.out("find", "/", "-xdev", *prune, "-print").splitlines())


GO = "/var/lib/receptor-worker/go"
# Works of one process: each says the process's number and waits.
MANY = r"""#!/bin/sh
echo '{"type":"hello","protocol":1,"name":"many","version":"1.0.0","mode":"serve","max_jobs":8,"actions":{"say":{"payload":"none","output":"json"}}}'
say() { printf '{"type":"%s","id":"%s",%s}\n' "$1" "$id" "$2"; }
run() {
    say data "\"text\":\"$$\""; while ! [ -e /var/lib/receptor-worker/go ]; do sleep 0.1; done
    say data '"text":"end"'; say done '"code":0'
}
while read -r line; do
    id=${line#*\"id\":\"}; id=${id%%\"*}
    case $line in *'"type":"execute"'*) run & ;; *'"type":"shutdown"'*) exit ;; esac
done
"""


class Load:
    """Clients that come and go while a block of code is run; none of them may fail."""

    def __init__(self, case, node):
        self.case, self.node = case, node

    def __enter__(self):
        self.clients = self.node.popen("python3", "-c", LOAD, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.case.assertEqual(self.clients.stdout.readline(), "began\n")

    def __exit__(self, failed, *_):
        said = self.clients.communicate("stop\n", timeout=PATIENCE)[0]
        if failed is None:
            asked, failures = json.loads(said)
            self.case.assertEqual(failures, [], f"of {asked}")
            self.case.assertGreater(asked, 20)


@of_packages
class Packages(Case):
    """On a node with the .deb packages."""

    def plugin(self, name, script):
        """Drops in a plugin, and waits until it is noticed."""
        self.a.write(f"/etc/receptor/plugins/{name}", (
            "#!/bin/sh\n"
            f'echo \'{{"type":"hello","protocol":1,"name":"{name}","version":"1.0.0","actions":{{"say":{{"payload":"none","output":"text"}}}}}}\'\n'
            f"read -r hello || exit 0\nread -r job || exit 0\n{script}\n"
        ), mode=0o755)
        self.until(lambda: f'"{name}"' in self.ctl("--json", "capabilities").stdout)

    def version(self):
        return self.a.out("dpkg-query", "--show", "--showformat=${Version}", "receptord")

    def upgrade(self):
        """To a newer version, until the test is over."""
        self.addCleanup(install_packages, self.a, *(package(name) for name in NAMES))
        install_packages(self.a, *newer(self.session))

    def test_10_an_upgrade_and_a_downgrade_under_load_fail_no_connection(self):
        node_id, older, first = self.status()["NodeID"], self.version(), self.pid()
        with Load(self, self.a):
            install_packages(self.a, *newer(self.session))
            second = self.until(lambda: self.is_active(SERVICE) and self.pid())
        self.assertEqual(self.version(), NEWER)
        with Load(self, self.a):
            install_packages(self.a, *(package(name) for name in NAMES))
            third = self.until(lambda: self.is_active(SERVICE) and self.pid())
        self.assertEqual(self.version(), older)
        self.assertEqual(len({first, second, third}), 3)
        self.assertEqual(self.status()["NodeID"], node_id)

    def test_10_work_that_runs_goes_on_over_an_upgrade(self):
        self.a.run("rm", "-f", GO)
        self.plugin("slow", f"echo $$; while ! [ -e {GO} ]; do sleep 0.1; done; echo end")
        work = self.ctl("send", "--detach", "--directive", "slow:say", "--recipient", self.status()["NodeID"]).stdout.strip()
        pid = self.until(lambda: self.ctl("work", "results", work, check=False).stdout.strip(), "the first response")
        before = self.pid()
        self.upgrade()
        self.until(lambda: self.pid() not in (0, before) and self.status())
        self.assertIn("slow", self.a.path(f"/proc/{pid}/cmdline").read_text())
        self.a.write(GO, "")
        self.assertEqual(self.ctl("work", "results", "--follow", work).stdout.split(), [pid, "end"])

    def test_10_a_serving_plugin_goes_on_over_an_upgrade(self):
        self.a.run("rm", "-f", GO)
        self.a.write("/etc/receptor/plugins/many", MANY, mode=0o755)
        self.until(lambda: '"many"' in self.ctl("--json", "capabilities").stdout)
        send = ["send", "--detach", "--directive", "many:say", "--recipient", self.status()["NodeID"]]
        works = [self.ctl(*send).stdout.strip() for _ in range(3)]
        said = [
            self.until(lambda: self.ctl("work", "results", work, check=False).stdout.strip(), "the first response")
            for work in works
        ]
        self.assertEqual(len(set(said)), 1, "one process has all of them")
        before = self.pid()
        self.upgrade()
        self.until(lambda: self.pid() not in (0, before) and self.status())
        self.a.write(GO, "")
        for work in works:
            self.assertEqual(self.ctl("work", "results", "--follow", work).stdout.split(), [said[0], "end"])

    def test_37_every_program_file_and_protocol_has_a_page_and_shells_complete(self):
        listed = self.a.out("dpkg", "--listfiles", *NAMES).split()
        names = [path.removeprefix("/usr/share/") for path in listed]
        for name in [
            "man/man8/receptord.8.gz", "man/man1/receptorctl.1.gz", "man/man1/receptorctl-send.1.gz",
            "man/man5/receptord.toml.5.gz", "man/man7/receptor-plugin.7.gz",
            *(f"bash-completion/completions/{program}" for program in ["receptord", "receptorctl"]),
            *(f"zsh/vendor-completions/_{program}" for program in ["receptord", "receptorctl"]),
            *(f"fish/vendor_completions.d/{program}.fish" for program in ["receptord", "receptorctl"]),
        ]:
            self.assertIn(name, names)
        for shell, program in [("bash", "receptorctl"), ("bash", "receptord")]:
            self.a.run(shell, "-n", f"/usr/share/bash-completion/completions/{program}")

    def test_38_after_an_installation_it_runs_and_only_the_control_socket_is_there(self):
        for unit in [SERVICE, CONTROL]:
            self.assertTrue(self.is_active(unit), unit)
            self.assertEqual(self.a.out("systemctl", "is-enabled", unit), "enabled")
        self.assertFalse(self.is_active(MESH))
        self.assertEqual(self.a.run("systemctl", "is-enabled", MESH, check=False).stdout.strip(), "disabled")
        self.assertEqual(self.a.out("ss", "--no-header", "--listening", "--tcp", "--udp"), "")
        self.ctl("ping", self.status()["NodeID"])

    def test_38_a_changed_configuration_stays_over_an_upgrade(self):
        shipped = self.a.path("/etc/receptor/receptord.toml").read_bytes()
        self.addCleanup(self.a.write, "/etc/receptor/receptord.toml", shipped)
        self.a.write("/etc/receptor/receptord.toml", 'node-id = "mine"\n')
        install_packages(self.a, *newer(self.session))
        self.until(lambda: self.status()["NodeID"] == "mine")

    def test_38_a_plugin_that_is_dropped_in_is_there_at_once(self):
        self.plugin("hello", "echo good day")
        said = self.ctl("send", "--directive", "hello:say", "--recipient", self.status()["NodeID"])
        self.assertEqual(said.stdout, "good day\n")


def install_ansible_runner(node):
    """As an administrator does who has it from somewhere else than the distribution: with what the project's own tests use."""
    [from_there] = (ROOT / ".venv/lib").glob("python3*/site-packages")
    [to] = {path.parent for path in node.path("/usr/lib").glob("python3.*/asyncio")}
    to = Path("/usr/local/lib", to.name, "dist-packages")
    node.run("mkdir", "-p", to)
    for name in ["ansible_runner", "daemon", "lockfile", "packaging", "pexpect", "ptyprocess", "python_daemon"]:
        for path in from_there.glob(f"{name}*"):
            rig.command("cp", "-r", path, node.path(to))
    node.write("/usr/local/bin/ansible-runner", "#!/usr/bin/python3\nfrom ansible_runner.__main__ import main\nmain()\n", mode=0o755)


@of_packages
class Removal(Case):
    BARE = True

    def test_38_removed_and_purged_nothing_is_left(self):
        before = paths(self.a)
        install_packages(self.a, *(package(name) for name in NAMES))
        node_id = self.status()["NodeID"]
        self.configure('[[listen]]\nurl = "rnp://[::]:8899"\nallow-plaintext = true\n')
        self.systemctl("stop", SERVICE)
        self.systemctl("enable", "--now", MESH)
        self.systemctl("start", SERVICE)

        self.a.run("dpkg", "--remove", *NAMES)
        self.assertEqual(self.a.run("pgrep", "--euid", "receptor,receptor-worker", check=False).stdout, "")
        self.assertEqual(self.systemctl("list-units", "--no-legend", "receptor*").stdout, "")
        self.assertEqual(self.a.out("ss", "--no-header", "--listening", "--tcp"), "")
        self.assertTrue(self.a.path("/etc/receptor/receptord.toml").exists())

        install_packages(self.a, *(package(name) for name in NAMES))
        self.assertEqual(self.status()["NodeID"], node_id)

        self.a.run("dpkg", "--purge", *NAMES)
        self.assertEqual(self.systemctl("list-units", "--no-legend", "receptor*").stdout, "")
        self.assertEqual(paths(self.a) - before, set())
        self.assertFalse(self.a.path("/run/receptor").exists())


@of_packages
class Rpm(Case):
    BARE = True

    def test_39_the_scriptlets_of_an_rpm_work(self):
        # Of Debian's own packages rpm knows nothing: what these need is there.
        rpm = ["rpm", "--nodeps"]
        files = []
        for file in (file for name in NAMES for file in PACKAGES.glob(f"{name}-[0-9]*.rpm")):
            self.a.write(f"/root/{file.name}", file.read_bytes())
            files.append(f"/root/{file.name}")
        self.assertEqual(len(files), len(NAMES))

        self.a.run(*rpm, "--install", *files)
        for unit, state in [(SERVICE, "enabled"), (CONTROL, "enabled"), (MESH, "disabled")]:
            self.assertEqual(self.a.run("systemctl", "is-enabled", unit, check=False).stdout.strip(), state, unit)
        self.systemctl("start", SERVICE)
        node_id, before = self.status()["NodeID"], self.pid()
        self.assertEqual(self.a.run("rpm", "--verify", "--nodeps", *NAMES).stdout, "")

        with Load(self, self.a):
            self.a.run(*rpm, "--upgrade", "--force", *files)
        self.assertNotIn(self.pid(), (0, before))
        self.assertEqual(self.status()["NodeID"], node_id)

        self.a.run(*rpm, "--erase", *NAMES)
        self.assertEqual(self.systemctl("list-units", "--no-legend", "receptor*").stdout, "")
        self.assertEqual(self.a.run("pgrep", "--euid", "receptor,receptor-worker", check=False).stdout, "")
        self.assertFalse(self.a.path("/usr/bin/receptord").exists())
        self.assertFalse(self.a.path("/etc/receptor/receptord.toml").exists())


class Chain(Case):
    NODES = 3

    def test_38_three_hosts_as_a_chain_run_ansible(self):
        install_ansible_runner(self.c)
        self.link_chain()
        self.assertEqual(len(self.ctl("--json", "traceroute", "c").stdout.splitlines()), 2)
        payload = {"module": "ping", "inventory": "localhost", "host_pattern": "localhost",
                   "extravars": {"ansible_connection": "local"}}
        said = self.ctl("send", "--directive", "runner:execute", "--recipient", "c", json.dumps(payload), check=False)
        self.assertEqual(said.returncode, 0, said.stdout[-2000:] + said.stderr[-2000:])
        self.assertEqual(json.loads(said.stdout.splitlines()[-1])["status"], "successful")


    def test_38_a_node_moves_to_another_host_and_what_waited_arrives(self):
        self.systemctl("stop", CONTROL, SERVICE, node=self.b)
        self.configure('node-id = "site"\n[[peer]]\nurl = "rnp://b:8888"\nallow-plaintext = true\n', node=self.c)
        self.systemctl("restart", SERVICE, node=self.c)
        work = self.ctl("send", "--detach", "--wait", "--directive", "echo:echo", "--recipient", "late", '"good day"',
                        node=self.c).stdout.strip()
        # As docs/operations.md says.
        self.systemctl("stop", CONTROL, SERVICE, node=self.c)
        self.c.run("tar", "-C", "/", "-czf", "/root/node.tar.gz", "var/lib/receptor", "etc/receptor")
        self.systemctl("stop", CONTROL, SERVICE)
        self.a.write("/root/node.tar.gz", self.c.path("/root/node.tar.gz").read_bytes())
        self.a.run("rm", "-r", "/var/lib/receptor")
        self.a.run("tar", "-C", "/", "-xpzf", "/root/node.tar.gz")
        self.systemctl("start", CONTROL, SERVICE)
        self.assertEqual(self.status()["NodeID"], "site")
        self.assertIn(work[:8], self.ctl("spool", "list").stdout)

        self.configure('node-id = "late"\n[[listen]]\nurl = "rnp://[::]:8888"\nallow-plaintext = true\n', node=self.b)
        self.systemctl("start", CONTROL, SERVICE, node=self.b)
        self.assertEqual(self.ctl("work", "results", "--follow", work).stdout, '"good day"\n')


@of_packages
class Quickstart(Case):
    NODES, BARE = 2, True

    def test_38_the_quickstart_does_what_it_says(self):
        text = Path(ROOT, "docs/quickstart.md").read_text()
        blocks = re.findall(r"^```sh ?([ab]?)\n(.*?)^```$", text, re.M | re.S)
        self.assertGreater(len(blocks), 3)
        for node in self.nodes:
            for name in NAMES:
                node.write(f"/root/{package(name).name}", package(name).read_bytes())
        # In place of ssh, which the nodes have not got.
        self.a.write("/usr/local/bin/scp", '#!/bin/sh\nfor to; do :; done\nmkdir -p /root/sent\nwhile [ $# -gt 1 ]; do cp "$1" /root/sent; shift; done\n'
                     'echo "${to#*:}" >/root/sent/.to\n', mode=0o755)
        for where, block in blocks:
            for node in self.nodes:
                if where in ("", node.name):
                    done = node.run("bash", "-e", "-c", f"cd /root\n{block}", check=False)
                    self.assertEqual(done.returncode, 0, f"{block}{done.stdout[-2000:]}{done.stderr[-2000:]}")
            if not where:
                # Where it can be reached apt installs it, as the package recommends it.
                install_ansible_runner(self.b)
            sent = self.a.path("/root/sent")
            if sent.exists():
                to = (sent / ".to").read_text().strip()
                for file in sent.glob("*.*"):
                    shutil.copy(file, self.b.path(f"{to}/{file.name}"))
                shutil.rmtree(sent)
        self.assertEqual(json.loads(done.stdout.splitlines()[-1])["status"], "successful")
        [link] = json.loads(self.ctl("--json", "links").stdout)["links"]
        self.assertEqual((link["node"], link["state"]), ("b", "up"))
        self.assertIsNotNone(link["certificate_expires"], "with TLS")
