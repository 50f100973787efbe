"""How the service starts, reloads, hangs, crashes and stops."""

import signal
from subprocess import PIPE

import points
from points import CONTROL, SERVICE, SOCKET, Case

# Works for longer than the unit's stop may take, unless the daemon asks for more.
SLOW = """#!/bin/sh
echo '{"type":"hello","protocol":1,"name":"slow","version":"1","actions":{"execute":{"payload":"none","output":"text"}}}'
read -r hello || exit 0
read -r work || exit 0
sleep 6
echo ended
"""


class Life(Case):
    def send_slow(self):
        node = self.status()["receptor"]["node"]
        self.until(lambda: self.plugins().get("slow", {}).get("ready"), "the plugin is there")
        return self.ctl("send", "--detach", "--directive=slow:execute", f"--recipient={node}").stdout.strip()

    def reload(self, **options):
        return self.systemctl("reload", SERVICE, **options)

    def test_05_a_reload_is_over_when_the_configuration_is_in_force(self):
        for level in ["warn", "debug", "info"]:
            self.configure(f'[log]\nlevel = "{level}"\n')
            self.reload()
            self.assertIn(level, self.ctl("log-level").stdout)
        self.assertTrue(self.is_active(SERVICE))

    def test_05_a_reload_of_a_wrong_configuration_fails(self):
        pid = self.pid()
        self.configure('[log]\nlevel = "debug"\n')
        self.reload()
        self.configure('[log]\nlevel = "warn"\n[link]\nhold-time = "soon"\n')
        self.assertNotEqual(self.reload(check=False).returncode, 0)
        self.assertEqual(self.pid(), pid)
        self.assertTrue(self.is_active(SERVICE))
        self.assertIn("debug", self.ctl("log-level").stdout)
        refused = self.entries("MESSAGE_ID=fa255e65d123484291fb5fc51c4d748f", f"_PID={pid}")
        self.assertEqual(len(refused), 1)
        # And mended, it is taken.
        self.configure('[log]\nlevel = "warn"\n')
        self.reload()
        self.assertIn("warn", self.ctl("log-level").stdout)

    def test_06_the_status_line_says_how_the_node_is(self):
        self.assertRegex(self.show("StatusText"), "^node [^ ]+: 0 neighbors, 0 works running, 0 messages in the spool")
        # Until it is cancelled.
        self.a.write("/etc/receptor/plugins/slow", SLOW.replace("sleep 6", "sleep 600"), mode=0o755)
        work = self.send_slow()
        self.until(lambda: "1 works running" in self.show("StatusText"))
        self.assertIn("1 works running", self.systemctl("status", SERVICE).stdout)
        self.ctl("work", "cancel", work)
        self.until(lambda: "0 works running" in self.show("StatusText"))

    def test_08_a_stop_takes_the_time_that_works_need(self):
        self.a.write("/etc/receptor/plugins/slow", SLOW, mode=0o755)
        # A plugin in a unit of its own is nothing that a stop waits for; this one is a child of the daemon.
        self.systemctl("stop", "receptor-worker.socket")
        # Less than the work takes: without more time the unit would be killed.
        self.edit(SERVICE, "[Service]\nTimeoutStopSec=2s\n")
        self.systemctl("restart", SERVICE)
        work = self.send_slow()
        self.until(lambda: self.status()["receptor"]["works_active"] == 1, "the work runs")
        self.systemctl("stop", SERVICE)
        self.assertEqual(self.show("Result"), "success")
        self.assertIn("ended", self.ctl("work", "results", work, "--follow").stdout)

    def test_07_a_hang_ends_in_a_new_process(self):
        self.edit(SERVICE, "[Service]\nWatchdogSec=2s\n")
        self.systemctl("restart", SERVICE)
        pid = self.pid()
        self.a.run("kill", "-STOP", pid)
        self.until(lambda: self.pid() not in (0, pid), "another process")
        self.ctl("status")
        self.assertIn("watchdog", self.a.journal("-u", SERVICE, "_PID=1").lower())

    def test_07_without_a_hang_the_watchdog_is_fed(self):
        self.edit(SERVICE, "[Service]\nWatchdogSec=1s\n")
        self.systemctl("restart", SERVICE)
        pid, fed = self.pid(), set()
        # Each time it is fed there is another time stamp.
        self.until(lambda: fed.add(self.show("WatchdogTimestampMonotonic")) or len(fed) > 5)
        self.assertEqual(self.pid(), pid)

    def test_14_a_stop_leaves_no_process(self):
        group = self.show("ControlGroup")
        self.systemctl("stop", SERVICE)
        left = self.a.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs", check=False).stdout
        self.assertEqual(left, "")
        self.assertEqual(self.show("Result"), "success")

    def test_14_what_does_not_end_by_itself_is_killed(self):
        """A child of the daemon that ignores SIGTERM, as KillMode=mixed has it."""
        group = self.show("ControlGroup")
        stubborn = self.a.popen("sh", "-c", f'echo $$ > /sys/fs/cgroup{group}/cgroup.procs; trap "" TERM; echo in; sleep 1000',
                                stdout=PIPE)
        self.assertEqual(stubborn.stdout.readline(), "in\n")
        self.systemctl("stop", SERVICE)
        self.assertEqual(stubborn.wait(30), -signal.SIGKILL)

    def test_16_a_wrong_configuration_is_not_tried_again(self):
        self.systemctl("stop", SERVICE)
        self.configure("node-id = 7\n")
        self.systemctl("start", SERVICE, check=False)
        self.assertEqual(self.show("ExecMainStatus"), "78")
        self.assertEqual(self.show("NRestarts"), "0")
        self.assertEqual(self.show("SubState"), "failed")
        self.assertIn("50-test.toml:1", self.a.journal("-u", SERVICE))

    def test_16_clients_of_a_wrong_configuration_do_not_end_the_socket(self):
        self.systemctl("stop", SERVICE)
        self.configure("node-id = 7\n")
        for _ in range(25):
            answer = self.ctl("status", check=False)
            self.assertNotEqual(answer.returncode, 0)
        self.assertIn("exit code 78", answer.stderr)
        self.assertTrue(self.is_active(CONTROL))
        self.a.run("rm", "/etc/receptor/receptord.toml.d/50-test.toml")
        self.ctl("status")

    def test_16_crashes_do_not_end_the_socket(self):
        # Else the pauses would be the longest part of this.
        self.edit(SERVICE, "[Service]\nRestartMaxDelaySec=500ms\n")
        for _ in range(20):
            pid = self.pid()
            self.a.run("kill", "-KILL", pid)
            # Whoever asks meanwhile waits.
            self.ctl("status")
            self.assertNotEqual(self.pid(), pid)
        self.assertTrue(self.is_active(CONTROL))

    def test_16_restarts_back_off(self):
        self.assertEqual(self.show("Restart"), "on-failure")
        self.assertEqual(self.show("StartLimitIntervalUSec"), "0")
        self.assertEqual(self.show("RestartUSec"), "200ms")
        if points.version >= 254:
            self.assertEqual(self.show("RestartMaxDelayUSec"), "10s")
            self.assertEqual(self.show("RestartSteps"), "10")

    def test_27_exit_codes(self):
        def code(*words, **options):
            return self.a.run("/usr/bin/receptord", *words, check=False, **options).returncode

        self.a.write("/root/bad.toml", "no-such-key = 1\n")
        self.assertEqual(code("--no-such-option"), 2)
        self.assertEqual(code("--check-config"), 0)
        self.assertEqual(code("--check-config", "--config", "/root/bad.toml"), 78)
        self.assertEqual(code("-d", "/var/lib/receptor", "--socket-path=/tmp/other", user="receptor"), 75)
        self.assertEqual(code("-d", "/root/new", f"--socket-path={SOCKET}"), 69)
        self.assertEqual(code("-d", "/root/private/data", user="receptor"), 77)
        help_text = self.a.out("/usr/bin/receptord", "--help")
        for number in ["2", "69", "70", "75", "77", "78"]:
            self.assertIn(number, help_text.split("Exit codes:")[1])

    def test_26_looking_at_the_configuration(self):
        self.configure('node-id = "seen"\n')
        self.assertIn('node-id = "seen"  # /etc/receptor/receptord.toml.d/50-test.toml:1',
                      self.a.out("/usr/bin/receptord", "--print-config"))
        self.assertRegex(self.a.out("/usr/bin/receptord", "--version"), r"^receptord \d+\.\d+\.\d+")
        self.configure('node-id = "a"\nrouter = "perhaps"\n')
        checked = self.a.run("/usr/bin/receptord", "--check-config", check=False)
        self.assertEqual(checked.returncode, 78)
        self.assertIn("50-test.toml:2", checked.stderr)
