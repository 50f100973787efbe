"""What is in the journal: fields, kinds of events, explanations; and nothing while all is well."""

import re

from points import CONTROL, ROOT, SERVICE, Case

STARTED = "91661fee146e4bbc9bb8b9520d681672"
LINK_UP = "d8cb695cbaed42bcb75f201dede90c37"
DEAD_LETTER = "26bb8c2ad3944ff0bacde8c3a50aa5bc"


class Journal(Case):
    NODES = 2

    def test_28_events_have_kinds_and_fields(self):
        self.link_nodes()
        up = self.until(lambda: self.entries(f"MESSAGE_ID={LINK_UP}", "RECEPTOR_PEER=west"))[-1]
        self.assertEqual(up["RECEPTOR_NODE"], "east")
        self.assertEqual(up["_TRANSPORT"], "journal")
        self.assertEqual(up["_SYSTEMD_UNIT"], SERVICE)
        self.assertEqual(up["PRIORITY"], "6")
        started = self.entries(f"MESSAGE_ID={STARTED}", "RECEPTOR_NODE=east")
        self.assertEqual(len(started), 1)
        self.systemctl("stop", SERVICE, CONTROL, node=self.b)
        send = ["send", "--detach", "--expires=1s", "--directive=echo:echo", "--recipient=west", '"hello"']
        work = self.ctl(*send).stdout.strip()
        lost = self.until(lambda: self.entries(f"MESSAGE_ID={DEAD_LETTER}"), "a dead letter")[-1]
        self.assertEqual((lost["RECEPTOR_MESSAGE"], lost["RECEPTOR_WORK"], lost["RECEPTOR_NODE"]), (work, work, "east"))
        self.assertEqual(lost["PRIORITY"], "4")

    def test_29_the_catalog_explains_every_kind_of_event(self):
        kinds = dict(re.findall(r'pub const (\w+): &str = "([0-9a-f]{32})"', (ROOT / "receptord/src/log.rs").read_text()))
        listed = self.a.out("journalctl", "--list-catalog")
        for kind, number in kinds.items():
            self.assertRegex(listed, f"(?m)^{number} receptord: ", kind)
        ours = re.findall(r"(?m)^-- ([0-9a-f]{32})$", (ROOT / "systemd/receptor.catalog").read_text())
        self.assertEqual(sorted(ours), sorted(kinds.values()))

    def test_29_the_journal_shows_the_explanation(self):
        self.link_nodes()
        shown = self.a.out("journalctl", "--catalog", "-n1", f"MESSAGE_ID={LINK_UP}")
        self.assertIn("Subject: west is a neighbor", shown)

    def test_30_nothing_is_said_while_all_is_well(self):
        # Without ansible-runner the runner is not ready, and it is right to say so.
        for node in self.nodes:
            node.run("ln", "-s", "/dev/null", "/etc/receptor/plugins/runner")
        self.edit(SERVICE, "[Service]\nWatchdogSec=900ms\n")
        self.link_nodes()
        pid = self.pid()
        said = lambda *words: self.entries(f"_PID={pid}", *words)
        # The start is over when there is something to run, and the status line has been told.
        self.until(lambda: [entry for entry in said() if entry["MESSAGE"] == "capabilities"])
        self.ctl("send", "--directive=echo:echo", "--recipient=west", '"hello"')
        self.assertEqual(said("-p", "warning"), [])
        before = len(said())
        self.assertLess(before, 20)
        # Many rounds of hellos: as long as nothing happens there is nothing to say.
        fed = set()
        self.until(lambda: fed.add(self.show("WatchdogTimestampMonotonic")) or len(fed) > 40)
        self.assertEqual(said()[before:], [])

    def test_30_what_is_said_again_and_again_is_bounded(self):
        self.link_nodes()
        # A peer that breaks the rules as often as it can.
        script = "import socket\nfor n in range(500):\n s=socket.create_connection(('127.0.0.1',8888)); s.sendall(b'x'*64); s.close()"
        began = len(self.entries("-u", SERVICE))
        self.a.run("python3", "-c", script)
        self.ctl("ping", "west")
        self.assertLess(len(self.entries("-u", SERVICE)) - began, 50)
