"""Hosts that are gone from one moment to the next, and how long starts take."""

import json
import os

from points import CONTROL, SERVICE, SOCKET, Case

# How long a start may take on a machine that is busy with something else; on a quiet one it is a hundredth of that.
# `make bench` measures the same without systemd (N13, N14).
START_SECONDS = 5
WAITING = 10_000
# How often a host crashes; RECEPTOR_CRASHES=50 is the long form.
CRASHES = int(os.environ.get("RECEPTOR_CRASHES", 6))
# Puts that many messages for another node into the spool.
FILL = """
import json, socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
lines = client.makefile("rb")
lines.readline()
count = int(sys.argv[2])
send = b'{"command":"send","directive":"echo:echo","recipient":"west","detach":true,"expires":"1h","payload":1}\\n'
accepted, sent = 0, 0
while accepted < count:
    batch = min(256, count - sent)
    client.sendall(send * batch)
    sent += batch
    while accepted < sent:
        answer = json.loads(lines.readline())
        assert "error" not in answer, answer
        accepted += 1
"""


class Crash(Case):
    NODES = 2

    def start_seconds(self, unit=SERVICE):
        """From the start of the program until it said that it is ready."""
        began, ready = (int(self.show(f"{name}TimestampMonotonic", unit)) for name in ["ExecMainStart", "ActiveEnter"])
        return (ready - began) / 1e6

    def test_13_after_crashes_every_message_is_accounted_for(self):
        self.link_nodes()
        works = []
        for round in range(CRASHES):
            for number in range(4):
                works.append(self.ctl("send", "--detach", "--directive=echo:echo", "--recipient=west",
                                      f"{round}.{number}").stdout.strip())
            victim = self.nodes[round % 2]
            victim.crash()
            victim.boot()
            # A node that was started anew hears of others before it can send to them.
            self.until(lambda: self.ctl("ping", "west"), "the link")
        for number, work in enumerate(works):
            answer = self.until(lambda: self.ctl("work", "results", work, "--follow", "--timeout=60", check=False))
            interrupted = "interrupted" in answer.stderr
            self.assertTrue(answer.stdout.strip() == f"{number // 4}.{number % 4}" or interrupted, (number, answer))
        self.until(lambda: self.status()["receptor"]["works_active"] == 0)
        for node in self.nodes:
            self.assertEqual(self.entries("-p", "err", "-t", "receptord", node=node), [])

    def test_04_a_start_takes_no_time(self):
        self.systemctl("restart", SERVICE)
        self.assertLess(self.start_seconds(), START_SECONDS)
        print(f"from exec to ready: {1e3 * self.start_seconds():.0f} ms")

    def test_13_a_full_spool_is_served_soon_after_the_start(self):
        self.link_nodes()
        self.systemctl("stop", SERVICE, CONTROL, node=self.b)
        self.a.write("/root/fill.py", FILL)
        self.a.run("python3", "/root/fill.py", SOCKET, WAITING)
        self.a.run("kill", "-KILL", self.pid())
        # It is the socket that starts it again.
        self.assertGreaterEqual(self.status()["receptor"]["spool"]["entries"], WAITING)
        self.assertLess(self.start_seconds(), START_SECONDS)
        print(f"from exec to ready with {WAITING} messages: {1e3 * self.start_seconds():.0f} ms")
        self.systemctl("start", SERVICE, node=self.b)
        self.until(lambda: self.status()["receptor"]["spool"]["entries"] < WAITING, "the first deliveries")
