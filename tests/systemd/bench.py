#!/usr/bin/env python3
"""How long starts take under systemd, when the first connection to a socket begins them. A bench: figures, not a test.

    bench.py                         on every suite, one after the other
    bench.py --suite trixie --rounds 9
    bench.py --many 1000000          with the large spool, too: minutes to fill it

What systemd takes by itself is measured in the same node: it starts /bin/echo in the same way, bare and in the daemon's sandbox, whose
namespaces are most of it. It counts a program's start from before the sandbox is made, so what the daemon adds is the difference of the two. A node's disk is
memory: of a spool that is read from a disk `make bench` says more. Needs root.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

import points
import rig
from points import CONTROL, MESH, PATIENCE, SERVICE, SOCKET, Case
from points.test_crash import FILL
from run import SUITES, make_base_trees

WAITING = 10_000
# For a spool of millions on a busy machine.
FILL_SECONDS = 1800
FLOOR = "floor@.service"
FLOOR_SOCKET = "/run/floor.sock"

# Says when it connected and when the first line of the answer to something came, on the clock that systemd uses as well.
ASK = """
import json, socket, sys, time
path, question = sys.argv[1:]
began = time.monotonic()
with socket.socket(socket.AF_UNIX) as client:
    client.connect(path)
    lines = client.makefile("rb")
    line = lines.readline()
    while question:
        client.sendall(question.encode() + b"\\n")
        line = lines.readline()
        while line and b'"eof":true' not in line and b"NodeID" not in line:
            line = lines.readline()
        # Where there is no way yet it is asked again.
        if b'"error"' not in line or b'"eof":true' not in line:
            break
    assert line
    print(json.dumps([began, time.monotonic()]))
"""
# Says when the first of what waits has arrived here.
ARRIVAL = """
import json, socket, sys, time
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    lines = client.makefile("rb")
    lines.readline()
    def discarded():
        client.sendall(b'{"command":"send","recipient":"west","directive":"echo:discarded","volatile":true}\\n')
        said = None
        while True:
            answer = json.loads(lines.readline())
            said = answer.get("data", said)
            if answer.get("eof"):
                return said
    before = None
    while before is None:
        before = discarded()
    print("ready", flush=True)
    while discarded() == before:
        pass
    print(time.monotonic(), flush=True)
"""


class Bench(Case):
    NODES = 3

    def ask(self, question):
        return json.loads(self.a.out("python3", "-c", ASK, SOCKET, json.dumps(question)))

    def started(self, node=None):
        """When the program was executed last, in seconds."""
        return int(self.show("ExecMainStartTimestampMonotonic", node=node)) / 1e6

    # What systemd itself takes

    def make_floor(self, sandbox):
        """A program that says one line to whoever connects, in each node."""
        unit = self.a.out("systemctl", "cat", SERVICE) if sandbox else "[Service]\n"
        ours = ("Type", "Exec", "Sockets", "Restart", "Watchdog", "FileDescriptor", "Timeout", "WantedBy")
        lines = [line for line in unit.splitlines() if not line.startswith((*ours, "#", "[Install]"))]
        for node in self.nodes:
            node.write(f"/run/systemd/system/{FLOOR}", "\n".join(lines) + "\nExecStart=/bin/echo here\nStandardInput=socket\nStandardOutput=socket\n")
            node.write("/run/systemd/system/floor.socket", f"[Socket]\nListenStream={FLOOR_SOCKET}\nAccept=yes\n")
            self.systemctl("daemon-reload", node=node)
            self.systemctl("restart", "floor.socket", node=node)

    def floor(self, nodes=1):
        """From the first connection to the last answer of so many nodes at once."""
        asked = [node.popen("python3", "-c", ASK, FLOOR_SOCKET, "", stdout=subprocess.PIPE) for node in self.nodes[:nodes]]
        times = [json.loads(each.communicate(timeout=PATIENCE)[0]) for each in asked]
        return max(answered for _, answered in times) - min(began for began, _ in times)

    # What ours takes

    def first_answer(self):
        """From the connection to the first answer of a node."""
        self.systemctl("stop", SERVICE)
        began, answered = self.ask({"command": "status"})
        return answered - began

    def make_chain(self):
        """`a` dials `b`, and `b` dials `c`; the sockets at which they listen are systemd's."""
        listen = '[[listen]]\nurl = "rnp://[::]:8899"\nallow-plaintext = true\n'
        peer = '[[peer]]\nurl = "rnp://{}:8899"\nallow-plaintext = true\n'
        for node, links in [(self.a, peer.format("b")), (self.b, listen + peer.format("c")), (self.c, listen)]:
            self.configure(f'node-id = "{node.name}"\n{links}', node=node)
            if node is not self.a:
                self.systemctl("stop", SERVICE, node=node)
                self.systemctl("start", MESH, node=node)

    def chain(self, at_once):
        """From the first program's start to the answer of a plugin at the other end."""
        for node in self.nodes:
            self.systemctl("stop", SERVICE, node=node)
        starts = [node.popen("systemctl", "start", SERVICE) for node in self.nodes[1:] if at_once]
        _, answered = self.ask({"command": "send", "recipient": "c", "directive": "echo:echo", "payload": 1, "wait": True})
        for start in starts:
            start.wait()
        return answered - min(self.started(node) for node in self.nodes)

    def make_pair(self):
        """`a`, as "east", dials `b`, as "west", which is not there."""
        self.setUp()
        self.systemctl("stop", SERVICE, MESH, CONTROL, node=self.b)
        self.configure('node-id = "east"\n[[peer]]\nurl = "rnp://b:8899"\nallow-plaintext = true\n')
        self.configure('node-id = "west"\n[[listen]]\nurl = "rnp://[::]:8899"\nallow-plaintext = true\n', node=self.b)
        self.systemctl("restart", SERVICE)
        fill = FILL.replace('"echo:echo"', '"echo:discard"').replace('"detach":true', '"respond":false,"wait":true')
        self.a.write("/root/fill.py", fill)

    def first_delivery(self, count):
        """From the start of the program, with that many messages in its spool, to the first of them at its recipient."""
        missing = count - self.status()["receptor"]["spool"]["entries"]
        self.a.run("python3", "/root/fill.py", SOCKET, max(missing, 0), timeout=FILL_SECONDS)
        self.systemctl("kill", "--signal=KILL", SERVICE)
        self.systemctl("stop", SERVICE)
        # What it had and did not run would be taken for arrivals.
        self.b.run("rm", "-rf", "/var/lib/receptor")
        self.systemctl("start", SERVICE, node=self.b)
        arrival = self.b.popen("python3", "-c", ARRIVAL, SOCKET, stdout=subprocess.PIPE)
        assert arrival.stdout.readline() == "ready\n"
        self.ask({"command": "status"})
        arrived = float(arrival.communicate(timeout=PATIENCE)[0])
        self.systemctl("stop", SERVICE, CONTROL, node=self.b)
        return arrived - self.started()


def row(number, what, seconds, floor=None, must=None):
    """Prints a figure, and what of it is the daemon's own; returns the median."""
    ms = sorted(1e3 * each for each in seconds)
    median = statistics.median(ms)
    words = [f"{number:<11} {what:<65} {median:8.1f} ms ({ms[0]:.1f} to {ms[-1]:.1f})"]
    if floor is not None:
        added = max(median - 1e3 * floor, 0)
        words.append(f"{added:.1f} ms more than systemd alone")
        if must is not None:
            words.append(f"must {must} ms: {'holds' if added <= must else 'MISSES'}")
    print(", ".join(words), flush=True)
    return statistics.median(seconds)


def measure(suite, rounds, many):
    print(f"== {suite}, systemd {SUITES[suite]}, {rounds} rounds, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    with rig.Session(f"{os.getpid()}") as home:
        points.prepare(home, suite, SUITES[suite])
        Bench.setUpClass()
        try:
            bench = Bench()
            bench.setUp()
            for sandbox in [False, True]:
                bench.make_floor(sandbox)
                what = "connection to the answer of /bin/echo" + (" in the daemon's sandbox" if sandbox else "")
                floor = row("floor", what, [bench.floor() for _ in range(rounds)])
            of_three = row("floor", "the same of three nodes at once", [bench.floor(3) for _ in range(rounds)])
            row("N13-socket", "connection to the first answer", [bench.first_answer() for _ in range(rounds)], floor, must=15)
            bench.make_chain()
            row("N13-mesh", "start of three nodes at once to a plugin's answer", [bench.chain(True) for _ in range(rounds)], of_three, must=100)
            row("N13-mesh", "start of the first, whose link starts the second, and so on", [bench.chain(False) for _ in range(rounds)], 3 * floor)
            for count, must, times in [(WAITING, 150, rounds), (many, 3000, 3)]:
                if count:
                    bench.make_pair()
                    what = f"start to the first delivery, with {count:,} in the spool"
                    row("N14", what, [bench.first_delivery(count) for _ in range(times)], floor, must)
        finally:
            Bench.doClassCleanups()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suite", action="append", choices=SUITES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--many", type=int, default=0)
    options = parser.parse_args()
    suites = options.suite or list(SUITES)
    rig.collect_garbage()
    make_base_trees(suites)
    for suite in suites:
        measure(suite, options.rounds, options.many)


if __name__ == "__main__":
    sys.exit(main())
