"""Works in units of their own, and what becomes of them when the daemon is stopped, restarted or killed."""

import json

from points import SERVICE, Case
from points.test_packages import install_ansible_runner

WORKERS = "receptor-worker.socket"
TEMPLATE = "receptor-worker@.service"
LINES = 3000
GO = "/etc/receptor/go"
# Says a thousand lines, waits for a file, and says the others; with each its process id.
COUNT = f"""#!/bin/sh
echo '{{"type":"hello","protocol":1,"name":"count","version":"1","actions":{{"execute":{{"payload":"none","output":"text"}}}}}}'
read -r hello || exit 0
read -r work || exit 0
self="$$ $(id -un) $(ulimit -n)"
number=0
while [ $number -lt {LINES} ]; do
    number=$((number + 1))
    echo "$number $self"
    while [ $number = 1000 ] && ! [ -e {GO} ]; do sleep 0.05; done
done
"""
# The same for several works in one process.
MANY = f"""#!/usr/bin/python3
import getpass, json, os, resource, sys, threading, time
lock = threading.Lock()
def say(**message):
    with lock:
        print(json.dumps(message), flush=True)
say(type="hello", protocol=1, name="many", version="1", mode="serve", max_jobs=8,
    actions={{"execute": {{"payload": "none", "output": "json"}}}})
def run(id):
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(1, {LINES} + 1):
        say(type="data", id=id, text=f"{{number}} {{os.getpid()}} {{getpass.getuser()}} {{files}}")
        while number == 1000 and not os.path.exists("{GO}"):
            time.sleep(0.05)
    say(type="done", id=id, code=0)
for line in sys.stdin:
    message = json.loads(line)
    if message["type"] == "execute":
        threading.Thread(target=run, args=[message["id"]], daemon=True).start()
    elif message["type"] == "shutdown":
        break
"""


class Workers(Case):
    def setUp(self):
        super().setUp()
        self.a.run("rm", "-f", GO)
        self.a.write("/etc/receptor/plugins/count", COUNT, mode=0o755)
        self.a.write("/etc/receptor/plugins/many", MANY, mode=0o755)
        self.configure('node-id = "east"\n')
        self.systemctl("start", WORKERS)
        self.systemctl("restart", SERVICE)
        self.until(lambda: {"count", "many"} <= set(self.ctl("plugin", "list").stdout.split()))

    def begin(self, plugin="count"):
        """Starts a work, and waits until it stands at its thousandth line."""
        work = self.ctl("send", "--detach", f"--directive={plugin}:execute", "--recipient=east").stdout.strip()
        self.until(lambda: len(self.lines(work)) == 1000, "a thousand lines")
        return work

    def lines(self, work):
        return self.ctl("work", "results", work, check=False).stdout.splitlines()

    def finish(self, work):
        """Lets it go on to its end: every line came once, in order, from one process, which is gone. The last of them."""
        last = self.follow(work)
        self.until(lambda: not self.units(), "its unit is gone")
        self.until(lambda: self.show("NFileDescriptorStore") == "0", "its connection is forgotten")
        return last

    def follow(self, work):
        """As finish, of a process that has other works."""
        self.a.write(GO, "")
        lines = self.ctl("work", "results", work, "--follow").stdout.splitlines()
        self.assertEqual([int(line.split()[0]) for line in lines], list(range(1, LINES + 1)))
        self.assertEqual(len({line.split()[1] for line in lines}), 1)
        return lines[-1].split()

    def units(self):
        listed = self.a.out("systemctl", "list-units", "--plain", "--no-legend", "receptor-worker@*")
        return [line.split()[0] for line in listed.splitlines()]

    def test_11_a_restart_leaves_works_running(self):
        work = self.begin()
        for _ in range(2):
            before = self.pid()
            self.systemctl("restart", SERVICE)
            self.assertNotEqual(self.pid(), before)
            self.until(lambda: self.status()["receptor"]["works_active"] == 1, "the work is taken up")
        self.finish(work)

    def test_11_a_restart_leaves_a_serving_plugin_running(self):
        works = [self.begin("many") for _ in range(3)]
        echo = self.ctl("send", "--detach", "--directive=echo:sleep", "--recipient=east", '{"ms": 5000}').stdout.strip()
        units = self.until(lambda: len(self.units()) == 2 and self.units(), "a unit for each plugin")
        for _ in range(2):
            before = self.pid()
            self.systemctl("restart", SERVICE)
            self.assertNotEqual(self.pid(), before)
            self.until(lambda: self.status()["receptor"]["works_active"] >= 3, "the works are taken up")
            self.assertLessEqual(set(self.units()), set(units))
        self.ctl("work", "results", echo, "--follow")
        pids = {self.follow(work)[1] for work in works}
        self.assertEqual(len(pids), 1)
        self.until(lambda: not self.units(), "their units are gone")

    def test_11_a_stop_ends_works(self):
        work = self.begin()
        (unit,) = self.units()
        group = self.show("ControlGroup", unit)
        self.systemctl("stop", SERVICE)
        self.until(lambda: not self.units(), "the unit is gone")
        self.assertFalse(self.a.path(f"/sys/fs/cgroup{group}").exists())
        self.systemctl("start", SERVICE)
        ended = self.until(lambda: self.ctl("work", "results", work, "--follow", check=False))
        self.assertIn("interrupted", ended.stderr)

    def test_12_a_crash_leaves_works_running(self):
        work = self.begin()
        for _ in range(3):
            before = self.pid()
            self.assertEqual(self.show("NFileDescriptorStore"), "1")
            self.systemctl("kill", "--signal=KILL", "--kill-whom=main", SERVICE)
            self.until(lambda: self.pid() not in [0, before] and self.is_active(SERVICE), "another daemon")
            self.until(lambda: self.status()["receptor"]["works_active"] == 1, "the work is taken up")
        self.finish(work)

    def test_12_a_crash_leaves_a_serving_plugin_running(self):
        works = [self.begin("many") for _ in range(3)]
        for _ in range(3):
            before = self.pid()
            self.assertEqual(self.show("NFileDescriptorStore"), "1")
            self.systemctl("kill", "--signal=KILL", "--kill-whom=main", SERVICE)
            self.until(lambda: self.pid() not in [0, before] and self.is_active(SERVICE), "another daemon")
            self.until(lambda: self.status()["receptor"]["works_active"] == 3, "the works are taken up")
        pids = {self.follow(work)[1] for work in works}
        self.assertEqual(len(pids), 1)
        self.until(lambda: not self.units(), "the unit is gone")
        self.until(lambda: self.show("NFileDescriptorStore") == "0", "its connection is forgotten")

    def test_15_a_serving_plugin_has_a_unit_for_all_of_its_works(self):
        self.edit(TEMPLATE, "[Service]\nLimitNOFILE=99\n")
        works = [self.begin("many") for _ in range(2)]
        (unit,) = self.units()
        self.assertRegex(self.show("ControlGroup", unit), "/receptor.slice/receptor-workers.slice/")
        for work in works:
            _, _, user, files = self.follow(work)
            self.assertEqual((user, files), ("receptor-worker", "99"))

    def test_15_each_work_has_a_unit_and_a_user_and_limits_that_can_be_changed(self):
        self.edit(TEMPLATE, "[Service]\nLimitNOFILE=99\n")
        work = self.begin()
        other = self.ctl("send", "--detach", "--directive=count:execute", "--recipient=east").stdout.strip()
        units = self.until(lambda: len(self.units()) == 2 and self.units(), "two units")
        groups = {self.show("ControlGroup", unit) for unit in units}
        self.assertEqual(len(groups), 2)
        for group in groups:
            self.assertRegex(group, "/receptor.slice/receptor-workers.slice/")
        _, _, user, files = self.finish(work)
        self.assertEqual((user, files), ("receptor-worker", "99"))
        self.finish(other)

    def test_15_a_plugin_has_units_of_its_own(self):
        for name in [WORKERS, TEMPLATE]:
            text = self.a.path(f"/usr/lib/systemd/system/{name}").read_text()
            copy = "/run/systemd/system/" + name.replace("worker", "worker-count")
            self.a.write(copy, text.replace("receptor-worker.sock", "receptor-worker-count.sock"))
            self.addCleanup(self.a.run, "rm", copy)
        self.systemctl("daemon-reload")
        self.systemctl("start", "receptor-worker-count.socket")
        work = self.begin()
        self.assertEqual(self.units(), [])
        listed = self.a.out("systemctl", "list-units", "--plain", "--no-legend", "receptor-worker-count@*")
        self.assertEqual(len(listed.splitlines()), 1)
        self.finish(work)

    def test_15_a_plugin_cannot_reach_what_is_the_daemon_s(self):
        probe = COUNT[: COUNT.index("self=")].replace("count", "probe") + (
            "for path in /var/lib/receptor/spool /var/lib/receptor/jobs /run/receptor/receptord.sock; do\n"
            "    if ls $path >/dev/null 2>&1; then echo seen $path; fi\ndone\n"
            "if touch here && mkdir -m 700 mine && touch mine/too; then echo made; fi\n"
        )
        self.a.write("/etc/receptor/plugins/probe", probe, mode=0o755)
        self.until(lambda: "probe" in self.ctl("plugin", "list").stdout)
        said = self.ctl("send", "--directive=probe:execute", "--recipient=east").stdout
        self.assertEqual(said.split("\n")[:-1], ["made"])
        self.until(lambda: self.a.out("ls", "/var/lib/receptor/jobs") == "", "its directory is gone")

    def test_15_a_result_file_that_only_the_plugin_can_read_is_taken(self):
        hello = COUNT[: COUNT.index("read -r hello")].replace("count", "files").replace('"text"', '"json"')
        self.a.write("/etc/receptor/plugins/files", hello + """
read -r hello || exit 0
read -r work || exit 0
umask 077
echo private >small
head -c 3000000 /dev/zero >large
for file in small large; do
    echo '{"type":"data","id":"'$RECEPTOR_JOB_ID'","file":"'$file'"}'
done
echo '{"type":"done","id":"'$RECEPTOR_JOB_ID'","code":0}'
""", mode=0o755)
        self.until(lambda: "files" in self.ctl("plugin", "list").stdout)
        work = self.ctl("send", "--detach", "--directive=files:execute", "--recipient=east").stdout.strip()
        said = self.a.out("sh", "-c", f"receptorctl work results {work} --follow | wc -c")
        self.assertIn(int(said), range(3000008, 3000012))

    def test_15_ansible_runs_in_a_unit(self):
        install_ansible_runner(self.a)
        self.systemctl("restart", SERVICE)
        payload = {"module": "setup", "inventory": "localhost", "host_pattern": "localhost",
                   "extravars": {"ansible_connection": "local"}}
        self.until(lambda: "ready" in self.ctl("plugin", "list").stdout)
        said = self.ctl("send", "--directive=runner:execute", "--recipient=east", json.dumps(payload), check=False)
        self.assertEqual(said.returncode, 0, said.stdout[-2000:] + said.stderr[-2000:])
        self.assertEqual(json.loads(said.stdout.splitlines()[-1])["status"], "successful")
        started = self.entries("-u", "receptor-worker@*")
        self.assertTrue(started, "it ran elsewhere")

    def test_31_the_plugins_of_further_nodes_are_their_children(self):
        self.a.write("/etc/receptor@west/receptord.toml", 'node-id = "west"\n')
        self.systemctl("start", "receptord@west")
        self.addCleanup(self.systemctl, "stop", "receptord@west", "receptord-control@west.socket")
        self.a.write(GO, "")
        socket = "--socket-path=/run/receptor@west/receptord.sock"
        said = self.ctl("send", "--directive=count:execute", "--recipient=west", socket).stdout.splitlines()
        self.assertEqual((len(said), said[0].split()[2]), (LINES, "receptor"))

    def test_18_exposure(self):
        path = f"/usr/lib/systemd/system/{TEMPLATE}"
        said = self.a.run("systemd-analyze", "--no-pager", "--offline=yes", "--threshold=20", "security", path, check=False)
        self.assertEqual(said.returncode, 0, said.stdout)
