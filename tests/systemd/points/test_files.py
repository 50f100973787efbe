"""Files that others read: users, directories, presets, layers of configuration, plugins; and units for several nodes and for users."""

import json
import re

import points
from points import CONFIGURATION, CONTROL, MESH, SERVICE, Case

UNITS = [SERVICE, CONTROL, MESH, "receptord@x.service", "receptord-control@x.socket", "receptord-mesh@x.socket"]
ECHO = """#!/bin/sh
echo '{"type":"hello","protocol":1,"name":"%(name)s","version":"%(version)s","actions":{"execute":{"payload":"none","output":"text"}}}'
read -r hello || exit 0
"""


class Files(Case):
    def test_24_users_and_directories_can_be_made_again(self):
        before = self.a.out("getent", "passwd", "receptor")
        for _ in range(2):
            self.a.run("systemd-sysusers")
            self.a.run("systemd-tmpfiles", "--create", "receptor.conf")
        self.assertEqual(self.a.out("getent", "passwd", "receptor"), before)
        self.assertEqual(self.a.out("stat", "-c", "%a %U %G", "/etc/receptor/tls"), "750 root receptor")

    def test_24_below_another_root(self):
        self.a.run("sh", "-c", "rm -rf /root/other; mkdir -p /root/other/etc /root/other/usr/lib/sysusers.d /root/other/usr/lib/tmpfiles.d; "
                               "cp /usr/lib/sysusers.d/receptor.conf /root/other/usr/lib/sysusers.d; "
                               "cp /usr/lib/tmpfiles.d/receptor.conf /root/other/usr/lib/tmpfiles.d")
        for _ in range(2):
            self.a.run("systemd-sysusers", "--root=/root/other")
            self.a.run("systemd-tmpfiles", "--root=/root/other", "--create")
        self.assertIn("receptor:", self.a.path("/root/other/etc/passwd").read_text())
        self.assertTrue(self.a.path("/root/other/etc/receptor/tls").is_dir())

    def test_25_layers(self):
        """Of one name the administrator's file wins over that of this boot, and that over the vendor's; a link to /dev/null masks."""
        usr, run, etc = "/usr/lib/receptor/receptord.toml.d", "/run/receptor/receptord.toml.d", CONFIGURATION
        cases = [
            # Files with the limit that each sets, or None for a mask; then the limit in force and where it is from.
            ({}, None, None),
            ({f"{usr}/50-a.toml": 1}, 1, f"{usr}/50-a.toml"),
            ({f"{run}/50-a.toml": 2}, 2, f"{run}/50-a.toml"),
            ({f"{etc}/50-a.toml": 3}, 3, f"{etc}/50-a.toml"),
            ({f"{usr}/50-a.toml": 1, f"{run}/50-a.toml": 2}, 2, f"{run}/50-a.toml"),
            ({f"{usr}/50-a.toml": 1, f"{etc}/50-a.toml": 3}, 3, f"{etc}/50-a.toml"),
            ({f"{run}/50-a.toml": 2, f"{etc}/50-a.toml": 3}, 3, f"{etc}/50-a.toml"),
            ({f"{usr}/50-a.toml": 1, f"{run}/50-a.toml": 2, f"{etc}/50-a.toml": 3}, 3, f"{etc}/50-a.toml"),
            ({f"{usr}/90-z.toml": 1, f"{etc}/10-a.toml": 3}, 1, f"{usr}/90-z.toml"),
            ({f"{usr}/50-a.toml": 1, f"{etc}/50-a.toml": None}, None, None),
            ({f"{usr}/50-a.toml": 1, f"{run}/50-a.toml": None}, None, None),
            ({f"{usr}/50-a.toml": 1, f"{run}/50-a.toml": None, f"{etc}/50-a.toml": 3}, 3, f"{etc}/50-a.toml"),
        ]
        builtin = None
        for files, limit, place in cases:
            with self.subTest(files=files):
                self.a.run("rm", "-rf", usr, run, etc)
                for path, value in files.items():
                    if value is None:
                        self.a.run("sh", "-c", f"mkdir -p $(dirname {path}) && ln -s /dev/null {path}")
                    else:
                        self.a.write(path, f"[link]\nmax-links = {value}\n")
                line = re.search(r"(?m)^max-links = (\d+) +# (.*)$", self.a.out("receptord", "--print-config"))
                if limit is None:
                    builtin = builtin or line[0]
                    self.assertEqual(line[0], builtin)
                else:
                    self.assertEqual(line.groups(), (str(limit), f"{place}:2"))

    def test_33_what_is_enabled_is_the_presets_choice(self):
        def states():
            return self.systemctl("is-enabled", SERVICE, CONTROL, MESH, check=False).stdout.split()

        self.assertEqual(states(), ["enabled", "enabled", "disabled"])
        self.systemctl("disable", SERVICE, CONTROL)
        self.assertEqual(states(), ["disabled"] * 3)
        self.a.write("/etc/systemd/system-preset/10-site.preset", "disable receptord.service\n")
        self.systemctl("preset", SERVICE, CONTROL, MESH)
        self.assertEqual(states(), ["disabled", "enabled", "disabled"])
        self.a.run("rm", "/etc/systemd/system-preset/10-site.preset")
        self.systemctl("preset", SERVICE, CONTROL, MESH)
        self.assertEqual(states(), ["enabled", "enabled", "disabled"])

    def test_33_after_the_installation_there_is_only_the_control_socket(self):
        self.assertTrue(self.is_active(SERVICE))
        self.assertEqual(self.status()["receptor"]["listeners"], [])
        self.assertNotIn("receptord", self.a.out("ss", "-Htulnp"))

    def test_36_where_plugins_come_from(self):
        vendor, local, admin = "/usr/lib/receptor/plugins", "/usr/local/lib/receptor/plugins", "/etc/receptor/plugins"

        def put(directory, version, mode=0o755):
            self.a.write(f"{directory}/probe", ECHO % {"name": "probe", "version": version}, mode=mode)

        def version_is(version):
            self.until(lambda: self.plugins().get("probe", {}).get("version") == version, f"version {version}")

        self.addCleanup(self.a.run, "rm", "-rf", f"{vendor}/probe", local)
        put(vendor, "1")
        version_is("1")
        put(local, "2")
        version_is("2")
        put(admin, "3")
        version_is("3")
        self.a.run("rm", f"{admin}/probe")
        version_is("2")
        self.a.run("ln", "-s", "/dev/null", f"{admin}/probe")
        self.until(lambda: not self.plugins().get("probe", {}).get("ready"), "the mask works")
        self.a.run("rm", f"{admin}/probe")
        version_is("2")
        # Everybody could put their own program there.
        self.a.run("chmod", "0777", f"{local}/probe")
        self.until(lambda: not self.plugins()["probe"]["ready"], "it is refused")
        self.assertEqual(self.entries("MESSAGE_ID=59e2f05c57234333b3d8feb573b38cef")[-1]["RECEPTOR_PLUGIN"], "probe")

    def test_40_units_are_sound(self):
        said = self.a.run("systemd-analyze", "verify", "--man=no", *UNITS, check=False)
        known = r"Unknown key (name )?'\w+' in section|Failed to parse boolean value, ignoring: identity"
        complaints = [line for line in said.stderr.splitlines() if not (points.version < 255 and re.search(known, line))]
        self.assertEqual(complaints, [])
        self.assertEqual(said.returncode, 0)
        self.assertEqual(self.a.out("systemctl", "--version").split()[1], str(points.version))


class Several(Case):
    def test_31_several_nodes_on_a_host(self):
        for name in ["east", "west"]:
            self.a.write(f"/etc/receptor@{name}/receptord.toml", f'node-id = "{name}"\n')
        self.systemctl("start", "receptord@east", "receptord@west")
        self.systemctl("stop", "receptord@west")
        for name in ["east", "west"]:
            socket = f"/run/receptor@{name}/receptord.sock"
            status = json.loads(self.ctl("--json", "status", f"--socket-path={socket}").stdout)["receptor"]
            self.assertEqual((status["node"], status["data_dir"]), (name, f"/var/lib/receptor@{name}"))
            self.systemctl("reload", f"receptord@{name}")
        # Without a configuration an instance has what is built in.
        self.systemctl("start", "receptord@plain")
        self.assertTrue(self.is_active("receptord@plain.service"))
        self.systemctl("stop", "receptord@*", "receptord-control@*")

    def test_32_a_user_has_a_node(self):
        self.a.run("useradd", "-m", "ada", check=False)
        self.a.run("loginctl", "enable-linger", "ada")
        self.addCleanup(self.a.run, "loginctl", "disable-linger", "ada")
        uid = self.a.out("id", "-u", "ada")
        manage = lambda *words: self.a.run("systemctl", "--user", *words, user="ada")
        self.until(lambda: manage("is-system-running", "--wait") or True, "the user's service manager")
        self.a.write("/home/ada/.config/receptor/receptord.toml", 'node-id = "adas"\n')
        self.a.run("chown", "-R", "ada:", "/home/ada/.config")
        manage("start", "receptord-control.socket")
        ask = ["--json", "status", f"--socket-path=/run/user/{uid}/receptor/receptord.sock"]
        status = json.loads(self.ctl(*ask, user="ada").stdout)["receptor"]
        self.assertEqual(status["node"], "adas")
        self.assertTrue(status["data_dir"].startswith("/home/ada/."), status["data_dir"])
        manage("reload", "receptord")
        manage("restart", "receptord")
        manage("stop", "receptord.service", "receptord-control.socket")
