"""Sockets that the service manager holds, and readiness."""

import json
import textwrap
from subprocess import PIPE

from points import CONTROL, MESH, SERVICE, SOCKET, Case

# Connects and asks for the status as often as it is told, each time on a new connection; prints what failed.
ASK = textwrap.dedent("""
    import json, os, socket, sys, time
    path, until = sys.argv[1], sys.argv[2]
    asked = failed = 0
    while not os.path.exists(until):
        try:
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(60)
            client.connect(path)
            lines = client.makefile("rb")
            greeting = lines.readline()
            client.sendall(b'{"command":"status"}\\n')
            answer = json.loads(lines.readline())
            assert greeting.startswith(b"Receptor Control"), greeting
            client.close()
        except Exception as error:
            failed += 1
            print(type(error).__name__, error, file=sys.stderr)
        asked += 1
        time.sleep(0.002)
    print(json.dumps([asked, failed]))
""")


class Activation(Case):
    def test_01_the_first_connection_starts_the_service(self):
        self.systemctl("stop", SERVICE)
        self.assertFalse(self.is_active(SERVICE))
        self.assertTrue(self.is_active(CONTROL))
        self.ctl("status")
        self.assertTrue(self.is_active(SERVICE))

    def test_01_the_first_link_starts_the_service(self):
        self.configure('[[listen]]\nurl = "rnp://[::1]:8899"\n')
        self.edit(MESH, "[Socket]\nListenStream=\nListenStream=[::1]:8899\n")
        self.systemctl("stop", SERVICE)
        self.systemctl("start", MESH)
        self.a.run("python3", "-c", "import socket; socket.create_connection(('::1', 8899), 30)")
        self.until(lambda: self.is_active(SERVICE))

    def test_02_sockets_are_told_apart_by_name(self):
        self.configure('[[listen]]\nurl = "rnp://[::1]:8899"\n')
        self.edit(MESH, "[Socket]\nListenStream=\nListenStream=[::1]:8899\n")
        # The order in which they are passed is that in which they are named.
        for order in [[CONTROL, MESH], [MESH, CONTROL]]:
            self.edit(SERVICE, f"[Service]\nSockets=\nSockets={order[0]}\nSockets={order[1]}\n")
            self.systemctl("stop", SERVICE, CONTROL, MESH)
            self.systemctl("start", SERVICE)
            self.assertEqual(self.status()["receptor"]["listeners"], ["rnp://[::1]:8899"], order)
            # Whether the service manager's socket is served, not another one at the same place.
            self.assertEqual(self.a.out("ss", "-Htln", "sport = :8899").count("LISTEN"), 1)

    def test_02_a_socket_of_an_unknown_name_is_a_wrong_configuration(self):
        self.edit(CONTROL, "[Socket]\nFileDescriptorName=steering\n")
        self.systemctl("stop", SERVICE, CONTROL)
        self.systemctl("start", SERVICE, check=False)
        self.assertEqual(self.show("ExecMainStatus"), "78")
        self.assertEqual(self.show("NRestarts"), "0")

    def test_02_a_passed_socket_is_no_way_around_encryption(self):
        self.systemctl("stop", SERVICE)
        self.systemctl("start", MESH)
        self.systemctl("start", SERVICE, check=False)
        self.assertEqual(self.show("ExecMainStatus"), "78")
        self.assertIn("[[listen]]", self.a.journal("-u", SERVICE, "-p", "err"))

    def test_03_it_runs_without_systemd(self):
        self.systemctl("stop", SERVICE, CONTROL)
        daemon = self.a.popen("env", "-i", "/usr/bin/receptord", "-d", "/root/data", "--node-id=alone",
                              "--socket-path=/root/control", "--listen-port=8888", "controller")
        try:
            ask = ["--json", "--socket-path=/root/control", "status"]
            self.until(lambda: self.ctl(*ask), "its control socket")
            status = json.loads(self.ctl(*ask).stdout)
            self.assertEqual(status["receptor"]["node"], "alone")
            self.a.run("python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 8888), 30)")
        finally:
            self.a.run("pkill", "-TERM", "-f", "receptord -d /root/data")
            self.assertEqual(daemon.wait(30), 0)

    def test_04_ready_means_that_it_serves(self):
        # Without the socket unit, there is no queue in which a client could wait.
        self.edit(SERVICE, "[Service]\nSockets=\n")
        self.systemctl("stop", SERVICE, CONTROL)
        self.systemctl("mask", "--runtime", CONTROL)
        self.addCleanup(self.systemctl, "unmask", "--runtime", CONTROL)
        script = f"""
            for i in $(seq 30); do
                systemctl start {SERVICE} && receptorctl --socket-path={SOCKET} status >/dev/null || exit 1
                systemctl stop {SERVICE}
            done
        """
        self.a.run("sh", "-c", script)

    def test_35_the_control_protocol_describes_itself(self):
        ask = """
            import json, socket, sys
            def ask(line):
                client = socket.socket(socket.AF_UNIX)
                client.connect(sys.argv[1])
                lines = client.makefile("rb")
                lines.readline()
                client.sendall(line.encode() + b"\\n")
                return lines.readline().decode()
            described = json.loads(ask("describe"))
            assert described["protocol"] == 1, described
            for name in described["commands"]:
                answer = ask(json.dumps({"command": name}))
                assert answer and not answer.startswith("ERROR: Unknown") and '"code":"unknown-command"' not in answer, (name, answer)
                assert json.dumps({"command": name}, separators=(",", ":"))[:-1] in described["text"], name
            print(len(described["commands"]))
        """
        self.a.write("/root/describe.py", textwrap.dedent(ask))
        self.assertGreater(int(self.a.out("python3", "/root/describe.py", SOCKET)), 20)

    def test_09_a_restart_fails_no_connection(self):
        self.a.write("/root/ask.py", ASK)
        self.a.run("rm", "-f", "/root/enough")
        load = self.a.popen("python3", "/root/ask.py", SOCKET, "/root/enough", stdout=PIPE, stderr=PIPE)
        for _ in range(10):
            self.systemctl("restart", SERVICE)
        self.a.write("/root/enough", "")
        said, complaints = load.communicate(timeout=60)
        asked, failed = json.loads(said)
        self.assertEqual(failed, 0, f"of {asked}: {complaints}")
        self.assertGreater(asked, 10)
