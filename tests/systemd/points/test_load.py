"""Durable messages that flow through a chain while nodes of it are restarted, upgraded and downgraded."""

import json
from subprocess import PIPE

from points import NAMES, PATIENCE, SERVICE, SOCKET, Case, install_packages, package
from points.test_packages import newer, of_packages

# Where a plugin in a unit of its own may write.
RAN = "/var/lib/receptor-worker/ran"
# Notes that it ran.
NOTE = f"""#!/bin/sh
echo '{{"type":"hello","protocol":1,"name":"note","version":"1","actions":{{"execute":{{"payload":"none","output":"text"}}}}}}'
read -r hello || exit 0
read -r work || exit 0
echo x >>{RAN}
echo noted
"""
# Keeps some messages under way to node "c" until it is told to stop; waits for their answers and prints how many messages there
# were of each directive, and what was wrong with an answer. One in a hundred has a process and a unit of its own.
FLOW = """
import json, select, socket, sys
WINDOW, SOME = 64, 200
client = socket.socket(socket.AF_UNIX)
client.settimeout(60)
client.connect(sys.argv[1])
lines = client.makefile("rb")
lines.readline()
under_way, sent, ended, wrong, ends = {}, {"echo:echo": 0, "note:execute": 0}, 0, [], False
while under_way or not ends:
    while len(under_way) < WINDOW and not ends:
        tag = sum(sent.values())
        directive = "echo:echo" if tag % 100 else "note:execute"
        command = {"command": "send", "recipient": "c", "directive": directive, "tag": tag}
        if tag % 100:
            command["payload"] = tag
        client.sendall(json.dumps(command).encode() + b"\\n")
        under_way[tag] = []
        sent[directive] += 1
    line = lines.readline()
    answer = json.loads(line) if line else sys.exit("the connection is closed")
    tag = answer.get("tag")
    if tag not in under_way:
        wrong.append(answer)
        continue
    if answer.get("type") == "accepted":
        continue
    under_way[tag].append(answer)
    if answer.get("eof"):
        said = [each.get("data", each.get("text")) for each in under_way.pop(tag)]
        expected = [tag] if tag % 100 else ["noted"]
        if answer.get("code") != 0 or [each for each in said if each is not None] != expected:
            wrong.append([said, answer])
        ended += 1
        if ended % SOME == 0:
            print(ended, flush=True)
    ends = ends or bool(select.select([sys.stdin], [], [], 0)[0])
print(json.dumps([sent, wrong]))
"""


class Flow(Case):
    """From `a` through `b` to `c`."""

    NODES = 3

    def setUp(self):
        super().setUp()
        self.c.run("rm", "-f", RAN)
        self.c.write("/etc/receptor/plugins/note", NOTE, mode=0o755)
        self.link_chain()
        self.until(lambda: '"note"' in self.ctl("--json", "capabilities").stdout, "the plugin is known at the other end")

    def begin(self):
        self.flow = self.a.popen("python3", "-c", FLOW, SOCKET, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        self.addCleanup(self.flow.kill)
        self.go_on()

    def go_on(self):
        """Waits until some more messages are answered."""
        line = self.flow.stdout.readline()
        if not line:
            self.fail(f"the flow ended: {self.flow.communicate()[1]}")

    def finish(self):
        """Every message was answered once and well, and those that leave a trace ran once."""
        said, complaints = self.flow.communicate("stop\n", timeout=PATIENCE)
        self.assertEqual(self.flow.returncode, 0, complaints)
        sent, wrong = json.loads(said.splitlines()[-1])
        self.assertEqual(wrong, [], sent)
        self.assertEqual(len(self.c.out("cat", RAN).split()), sent["note:execute"])
        for node in self.nodes:
            self.until(lambda: self.status(node)["receptor"]["spool"]["entries"] == 0, "nothing is left of them")
        print(f"{sum(sent.values())} messages")

    def test_09_restarts_in_a_chain_under_load_leave_every_message_with_one_answer(self):
        self.begin()
        for _ in range(3):
            for node in [self.b, self.c]:
                self.systemctl("restart", SERVICE, node=node)
                self.go_on()
        self.finish()

    @of_packages
    def test_10_upgrades_in_a_chain_under_load_leave_every_message_with_one_answer(self):
        older, newest = [package(name) for name in NAMES], newer(self.session)
        self.begin()
        for files in [newest, older]:
            for node in [self.b, self.c]:
                before = self.pid(node=node)
                install_packages(node, *files)
                self.assertNotIn(self.pid(node=node), (0, before))
                self.go_on()
        self.finish()
