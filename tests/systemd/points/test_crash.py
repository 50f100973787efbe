"""Hosts that are gone from one moment to the next, and how long starts take."""

import json

from points import CONTROL, SERVICE, SOCKET, Case


class Crash(Case):
    NODES = 2

    def test_13_after_crashes_every_message_is_accounted_for(self):
        self.configure('node-id = "east"\n[[listen]]\nurl = "rnp://[::]:8888"\nallow-plaintext = true\n')
        self.configure('node-id = "west"\n[[peer]]\nurl = "rnp://a:8888"\nallow-plaintext = true\n', node=self.b)
        for node in self.nodes:
            self.systemctl("restart", SERVICE, node=node)
        self.until(lambda: self.ctl("ping", "west"), "a link")
        works = []
        for round in range(6):
            for number in range(4):
                works.append(self.ctl("send", "--detach", "--directive=echo:echo", "--recipient=west", f"{round}.{number}").stdout.strip())
            victim = self.nodes[round % 2]
            victim.crash()
            victim.boot()
            self.until(lambda: self.ctl("status"), "the sender's node")
        for number, work in enumerate(works):
            answer = self.until(lambda: self.ctl("work", "results", work, "--follow", "--timeout=60", check=False))
            interrupted = "interrupted" in answer.stderr
            self.assertTrue(answer.stdout.strip() == f"{number // 4}.{number % 4}" or interrupted, (number, answer))
        self.until(lambda: self.status()["receptor"]["works_active"] == 0)
        for node in self.nodes:
            self.assertEqual(self.entries("-p", "err", "-t", "receptord", node=node), [])
