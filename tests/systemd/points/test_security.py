"""What the daemon may do, whom it listens to, and where its keys come from."""

import points
from points import ROOT, SERVICE, SOCKET, Case


class Sandbox(Case):
    NODES = 2

    def test_17_exposure(self):
        said = self.a.run("systemd-analyze", "--no-pager", "--threshold=11", "security", SERVICE, check=False)
        self.assertEqual(said.returncode, 0, said.stdout)

    def test_19_no_privileges(self):
        status = self.a.path(f"/proc/{self.pid()}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]:
            self.assertEqual(int(fields[name], 16), 0, name)
        self.assertEqual(fields["NoNewPrivs"], "1")
        self.assertEqual(fields["Seccomp"], "2")
        self.assertNotIn("0", fields["Uid"].split())
        self.assertEqual(self.show("User"), "receptor")

    def test_20_nothing_outside_of_the_list_is_called(self):
        """Whoever calls something else is killed here, and not only refused."""
        for node in self.nodes:
            self.edit(SERVICE, "[Service]\nSystemCallErrorNumber=kill\n", node=node)
        self.link_nodes()
        pids = [self.pid(node=node) for node in self.nodes]
        self.a.run("sh", "-c", "head -c 3000000 /dev/urandom > /root/large")
        echoed = self.a.run("sh", "-c", "receptorctl send --directive echo:bytes --recipient west @/root/large | cmp - /root/large")
        self.assertEqual(echoed.returncode, 0)
        self.a.write("/etc/receptor/plugins/new", "#!/bin/sh\nexit 1\n", mode=0o755)
        self.configure('[capabilities]\nsite = "berlin"\n', name="60-more.toml")
        self.systemctl("reload", SERVICE)
        for words in [["status"], ["spool", "list"], ["traceroute", "west"], ["work", "list"], ["plugin", "list"]]:
            self.ctl(*words)
        self.assertEqual([self.pid(node=node) for node in self.nodes], pids)
        for node in self.nodes:
            self.systemctl("stop", SERVICE, node=node)
            self.assertEqual(self.show("Result", node=node), "success")

    def test_21_addresses_can_be_denied(self):
        self.link_nodes()
        self.edit(SERVICE, (ROOT / "systemd/examples/addresses.conf").read_text().replace("10.20.0.0/16", "10.99.0.0/16"))
        self.systemctl("restart", SERVICE)
        connect = "import socket; socket.create_connection(('a', 8888), 2)"
        self.assertNotEqual(self.b.run("python3", "-c", connect, check=False).returncode, 0)
        self.ctl("status")
        self.edit(SERVICE, (ROOT / "systemd/examples/addresses.conf").read_text().replace("10.20.0.0/16", "10.77.0.0/16"))
        self.systemctl("restart", SERVICE)
        self.until(lambda: self.ctl("ping", "west"), "a link")

    def test_22_nothing_is_written_elsewhere(self):
        self.a.run("touch", "/root/before")
        self.link_nodes()
        self.ctl("send", "--directive=echo:echo", "--recipient=west", '"hello"')
        found = self.a.out("sh", "-c", "find / -xdev -newer /root/before -user receptor -not -path '/proc/*' -not -path '/sys/*'; "
                                       "find /run /tmp /dev/shm -newer /root/before -user receptor")
        elsewhere = [path for path in found.splitlines() if not path.startswith(("/var/lib/receptor", "/run/receptor"))]
        self.assertEqual(elsewhere, [])
        self.assertEqual(self.a.out("stat", "-c", "%a %U %G", "/var/lib/receptor"), "711 receptor receptor")
        self.assertEqual(self.a.out("sh", "-c", "find /var/lib/receptor -mindepth 1 -maxdepth 1 -type d -perm /o+rwx"), "")
        self.assertEqual(self.show("ProtectSystem"), "strict")

    def test_23_keys_come_as_credentials(self):
        listen = '[[listen]]\nurl = "rnps://[::]:8899"\n'
        peer = '[[peer]]\nurl = "rnps://a:8899"\n'
        tls = '[tls]\ncertificate = "receptord.pem"\nkey = "receptord.key"\nca = "/etc/receptor/tls/ca.pem"\n'
        self.a.run("sh", "-c", "rm -rf /root/ca && receptorctl cert init-ca --out /root/ca && "
                               "for n in east west; do receptorctl cert issue $n --ca /root/ca --out /root/ca; done")
        for node, name, links in [(self.a, "east", listen), (self.b, "west", peer)]:
            key = self.a.path(f"/root/ca/{name}.key").read_bytes()
            node.write("/etc/receptor/tls/ca.pem", self.a.path("/root/ca/ca.pem").read_bytes())
            node.write("/etc/credstore/receptord.pem", self.a.path(f"/root/ca/{name}.pem").read_bytes())
            node.write("/root/key", key, mode=0o600)
            node.run("mkdir", "-p", "/etc/credstore.encrypted")
            node.run("systemd-creds", "encrypt", "--with-key=host", "--name=receptord.key", "/root/key",
                     "/etc/credstore.encrypted/receptord.key")
            node.run("rm", "/root/key")
            if points.version < 254:
                self.edit(SERVICE, (ROOT / "systemd/examples/credentials.conf").read_text(), node=node)
            self.configure(f'node-id = "{name}"\n{links}{tls}', node=node)
            self.systemctl("restart", SERVICE, node=node)
        self.until(lambda: self.ctl("ping", "west"), "an encrypted link")
        secret = key.splitlines()[1]
        for file in ["environ", "cmdline"]:
            self.assertNotIn(secret, self.b.path(f"/proc/{self.pid(node=self.b)}/{file}").read_bytes())
        self.assertNotIn(secret.decode(), self.b.journal("-u", SERVICE))

    def test_34_the_control_socket_is_the_groups(self):
        self.assertEqual(self.a.out("stat", "-c", "%a %G", SOCKET), "660 receptor")
        for user, groups in [("stranger", []), ("member", ["-G", "receptor"])]:
            self.a.run("useradd", "-M", *groups, user, check=False)
        refused = self.ctl("status", user="stranger", check=False)
        self.assertEqual(refused.returncode, 77, refused.stderr)
        if points.version < 257:
            # Else all users but root are "nobody" to the daemon.
            self.edit(SERVICE, (ROOT / "systemd/examples/users.conf").read_text())
            self.systemctl("restart", SERVICE)
        self.ctl("log-level", "debug", user="member")
        uid = self.a.out("id", "-u", "member")
        said = [entry for entry in self.entries("-u", SERVICE) if entry["MESSAGE"] == "log level set by a client"][-1]
        self.assertEqual(said["RECEPTOR_UID"], uid)

    def test_34_rules_about_users_whom_the_daemon_cannot_see_are_told(self):
        self.a.run("useradd", "-M", "-u", "1234", "alice", check=False)
        self.a.run("useradd", "-M", "-u", "700000", "faraway", check=False)
        self.configure('[[allow-control]]\nuser = ["root", "receptor", "alice", "faraway"]\nmay = "administer"\n')
        self.systemctl("restart", SERVICE)
        # On 257 those up to 65535 are seen, as PrivateUsers=identity has it.
        hidden = ["alice", "faraway"] if points.version < 257 else ["faraway"]
        for drop_in, names in [(None, hidden), ((ROOT / "systemd/examples/users.conf").read_text(), [])]:
            if drop_in:
                self.edit(SERVICE, drop_in)
                self.systemctl("restart", SERVICE)
            pid = self.pid()
            warnings = [entry["MESSAGE"] for entry in self.entries("-u", SERVICE, "-p", "warning", f"_PID={pid}")]
            self.assertEqual([name for name in ["root", "receptor", "alice", "faraway"] if any(f'"{name}"' in each for each in warnings)],
                             names, warnings)
