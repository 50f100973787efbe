"""Commands of docs/operations.md, tried as they stand there."""

import re
from pathlib import Path

from points import CONFIGURATION, MESH, ROOT, SERVICE, Case

TEXT = Path(ROOT, "docs/operations.md").read_text()
# Carries whoever asks with CONNECT to where he wants; says each wish.
PROXY = """
import socket, threading
listener = socket.create_server(("::", 3128), family=socket.AF_INET6, dualstack_ipv6=True)
print("listens", flush=True)
def carry(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    target.close()
while True:
    near, _ = listener.accept()
    request = b""
    while not request.endswith(b"\\r\\n\\r\\n"):
        request += near.recv(1)
    method, wish, _ = request.split(b" ", 2)
    host, port = wish.decode().rsplit(":", 1)
    print(method.decode(), host, port, flush=True)
    far = socket.create_connection((host, int(port)))
    near.sendall(b"HTTP/1.1 200 Connection established\\r\\n\\r\\n")
    for pair in [(near, far), (far, near)]:
        threading.Thread(target=carry, args=pair, daemon=True).start()
"""


def block(heading):
    """A block of the document, without its fences."""
    found = re.findall(rf"^```{re.escape(heading)}\n(.*?)^```$", TEXT, re.M | re.S)
    assert len(found) == 1, heading
    return found[0]


class Operations(Case):
    NODES = 3

    def certify(self, **names):
        """Gives nodes their certificates; the authority is in /root/mesh of `a`."""
        self.a.run("sh", "-c", "rm -rf /root/mesh && cd /root && receptorctl cert init-ca --out mesh")
        for node, name in names.items():
            self.a.run("sh", "-c", f"cd /root && receptorctl cert issue {name} --ca mesh --out mesh")
            node = getattr(self, node)
            self.give(node, "ca.pem")
            for kind in ["pem", "key"]:
                self.give(node, f"{name}.{kind}", f"node.{kind}")
            self.configure(f'node-id = "{name}"\n[tls]\ncertificate = "node.pem"\nkey = "node.key"\nca = "ca.pem"\n', node, "10-id.toml")

    def give(self, node, file, name=None):
        path = f"/etc/receptor/tls/{name or file}"
        node.write(f"{path}.new", self.a.path(f"/root/mesh/{file}").read_bytes(), mode=0o640)
        node.run("chgrp", "receptor", f"{path}.new")
        node.run("mv", f"{path}.new", path)

    def test_38_a_web_proxy_is_the_way_out(self):
        """`c` reaches nobody but `b`, where the proxy is."""
        self.certify(a="outside", c="inside")
        self.configure(block("toml outside"))
        self.edit(MESH, block("ini receptord-mesh.socket"))
        self.systemctl("stop", SERVICE)
        self.systemctl("start", MESH, SERVICE)
        proxy = self.b.popen("python3", "-u", "-c", PROXY, stdout=-1)
        self.addCleanup(proxy.kill)
        self.assertEqual(proxy.stdout.readline(), "listens\n")
        self.configure(block("toml inside").replace("relay.example.com", "a"), node=self.c)
        self.edit(SERVICE, block("ini receptord.service").replace("proxy.example.com", "b"), node=self.c)
        self.systemctl("restart", SERVICE, node=self.c)
        self.until(lambda: self.ctl("ping", "outside", node=self.c), "a link")
        self.assertEqual(proxy.stdout.readline(), "CONNECT a 443\n")

    def test_38_a_revoked_certificate_has_no_link(self):
        self.certify(a="node-a", b="node-b")
        self.configure('[[listen]]\nurl = "rnps://[::]:8899"\n')
        self.configure('[[peer]]\nurl = "rnps://a:8899"\n', node=self.b)
        for node in [self.a, self.b]:
            self.systemctl("restart", SERVICE, node=node)
        self.until(lambda: self.ctl("ping", "node-b"), "a link")
        self.a.run("sh", "-ec", f"cd /root\n{block('sh once')}")
        # The first time it has nobody in it: what the nodes begin with.
        revoke, make = block("sh revoke").splitlines()
        self.a.run("sh", "-ec", f"cd /root\n{make}")
        self.give(self.a, "crl.pem")
        self.configure(self.a.path(f"{CONFIGURATION}/10-id.toml").read_text() + 'crl = "crl.pem"\n', name="10-id.toml")
        self.systemctl("reload", SERVICE)
        self.ctl("ping", "node-b")
        self.a.run("sh", "-ec", f"cd /root\n{revoke}\n{make}")
        self.give(self.a, "crl.pem")
        self.until(lambda: self.ctl("ping", "node-b", "--timeout", "1", check=False).returncode != 0, "the end of the link")
        self.until(lambda: "revoked" in self.ctl("links", node=self.b).stdout + self.b.journal("-u", SERVICE), "the reason")
