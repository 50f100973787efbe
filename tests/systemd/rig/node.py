"""A node: one container in which systemd is PID 1.

Owns its files (an overlay over a base tree), its network namespace and its control group, all of the same name, so that a
node that was killed can be cleaned up by name. Nothing is registered with a service manager of the host, which need not have one.

Its disk is memory: a crash keeps what was written, synced or not, so nothing here says anything about a power failure.
"""

import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from .base import Failure, command

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of a host with one hierarchy, and of one that still has the first version's beside it.
CGROUPS = Path("/sys/fs/cgroup")
MIXED = ["systemd", "unified"]

# A busy machine boots a node in some seconds; one that takes longer than this hangs.
BOOT_SECONDS = 90
COMMAND_SECONDS = 120
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)


def start_time(pid):
    """When a process began, which tells it from a later one of the same number; None when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None


def control_groups(name):
    """The groups of a node, one in each hierarchy that systemd looks at."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS / name]
    return [CGROUPS / hierarchy / name for hierarchy in MIXED if (CGROUPS / hierarchy).is_dir()]


def end_groups(name):
    """Ends every process of a node, and removes its control groups."""
    deadline = time.monotonic() + 10
    for group in control_groups(name):
        while group.exists() and time.monotonic() < deadline:
            members = [member for member in [group, *group.rglob("*")] if member.is_dir()]
            for member in members:
                try:
                    for pid in (member / "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                except OSError:
                    pass
            try:
                for member in sorted(members, reverse=True):
                    member.rmdir()
            except OSError:
                time.sleep(0.02)


def clean_up(name):
    """Ends every process of a node, and removes what it had outside of its directory."""
    end_groups(name)
    if Path("/run/netns", name).exists():
        command("ip", "netns", "del", name, check=False)
    shutil.rmtree(f"/run/systemd/nspawn/propagate/{name}", ignore_errors=True)


class Node:
    def __init__(self, session, name, layers):
        self.session, self.name, self.layers = session, name, [str(layer) for layer in layers]
        self.full_name = f"receptor-{session.name}-{name}"
        self.directory = session.directory / name
        self.process = self.leader = None
        # Address to name: what the node calls its neighbors.
        self.neighbors = {}
        for part in ["upper/etc", "work", "root"]:
            (self.directory / part).mkdir(parents=True)
        command("ip", "netns", "add", self.full_name)
        command("ip", "-n", self.full_name, "link", "set", "lo", "up")

    # Life

    def boot(self):
        """Starts the node and waits until systemd has reached its default target."""
        self.start()
        self.wait_until_booted()
        return self

    def start(self):
        """Only starts it: several nodes boot at once."""
        assert not self.is_up(), self.name
        hosts = ["127.0.0.1 localhost", "::1 localhost", f"127.0.1.1 {self.name}"]
        hosts += [f"{address} {name}" for address, name in self.neighbors.items()]
        (self.directory / "upper/etc/hosts").write_text("\n".join(hosts) + "\n")
        notify = self.directory / "notify"
        notify.unlink(missing_ok=True)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(notify))
        groups = control_groups(self.full_name)
        for group in groups:
            group.mkdir(exist_ok=True)
        # In a mount namespace of its own, a node that is killed leaves no mount.
        script = (
            'set -e; for group in $1; do echo $$ > "$group/cgroup.procs"; done; '
            'mount -t overlay overlay -o "lowerdir=$2,upperdir=$3/upper,workdir=$3/work" "$3/root"; shift 3; exec "$@"'
        )
        nspawn = [
            "systemd-nspawn", "--quiet", f"--directory={self.directory}/root", f"--machine={self.full_name}",
            f"--hostname={self.name}", f"--network-namespace-path=/run/netns/{self.full_name}", "--register=no",
            "--keep-unit", "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--console=pipe",
            "--notify-ready=yes", "--suppress-sync=yes", "--kill-signal=SIGRTMIN+3",
            # Without these, IPAddressDeny= and PrivateNetwork= are ignored in the node, with no more than a line in its journal.
            "--capability=CAP_BPF,CAP_PERFMON,CAP_NET_ADMIN", "--system-call-filter=bpf",
            "--boot",
        ]
        words = [
            "unshare", "--mount", "--propagation=private", "sh", "-c", script, "node",
            " ".join(map(str, groups)), ":".join(self.layers), str(self.directory), *nspawn,
        ]
        environment = {
            "PATH": SEARCH_PATH, "LANG": "C.UTF-8", "NOTIFY_SOCKET": str(notify), "SYSTEMD_LOG_LEVEL": "warning",
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "yes",
        }

        def end_with_this_process():
            os.setsid()
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        with open(self.directory / "console.log", "ab") as console:
            self.process = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                preexec_fn=end_with_this_process,
            )

    def wait_until_booted(self):
        deadline = time.monotonic() + BOOT_SECONDS
        ready = False
        while not ready:
            if self.process.poll() is not None or time.monotonic() > deadline:
                console = (self.directory / "console.log").read_text(errors="replace")
                raise Failure(f"{self.name} did not boot: {console[-2000:]}")
            if not select.select([self.notify], [], [], 0.2)[0]:
                continue
            for line in self.notify.recv(4096).decode(errors="replace").split("\n"):
                if line.startswith("X_NSPAWN_LEADER_PID="):
                    self.leader = int(line.split("=")[1])
                    # Made with the modes of this host's, which are not always as they should be.
                    for device in ["full", "null", "random", "tty", "urandom", "zero"]:
                        self.path(f"/dev/{device}").chmod(0o666)
                ready |= line == "READY=1"
        self.notify.close()

    def is_up(self):
        return self.process is not None and self.process.poll() is None

    def crash(self):
        """Every process is gone at once; the files stay as they are."""
        if self.is_up():
            self.process.kill()
        self.reap()

    def power_off(self):
        """Shuts down in order."""
        self.process.terminate()
        try:
            self.process.wait(COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name} does not shut down") from None
        finally:
            self.reap()

    def reap(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        end_groups(self.full_name)
        self.process = self.leader = None

    def destroy(self):
        self.crash()
        clean_up(self.full_name)

    # What is done in it

    def words(self, *words, user=None):
        """The host's command line for a command in the node, there in the node's own control group."""
        if not self.is_up():
            raise Failure(f"{self.name} is down")
        words = [str(word) for word in words]
        environment = [f"PATH={SEARCH_PATH}", "LANG=C.UTF-8", "HOME=/root", "SYSTEMD_PAGER=", "TERM=dumb"]
        if user is not None:
            passwd = self.path("/etc/passwd").read_text().splitlines()
            uid = next(line.split(":")[2] for line in passwd if line.startswith(f"{user}:"))
            words = ["runuser", "-u", user, "--", "env", f"XDG_RUNTIME_DIR=/run/user/{uid}", *words]
        # Else logind takes the caller for nobody of this host.
        join = 'for group in $1; do echo $$ > "$group/cgroup.procs"; done; shift; exec "$@"'
        scopes = " ".join(f"{group}/payload/init.scope" for group in control_groups(self.full_name)
                          if (group / "payload/init.scope").exists())
        return ["sh", "-c", join, "node", scopes, "nsenter", "-t", str(self.leader), "-a", "env", "-i", *environment, *words]

    def run(self, *words, check=True, user=None, timeout=COMMAND_SECONDS, **options):
        """Runs a command in the node; one that fails is a `Failure` unless `check` is false."""
        done = command(*self.words(*words, user=user), check=False, timeout=timeout, **options)
        if check and done.returncode != 0:
            said = (done.stderr or done.stdout).strip()[-2000:]
            raise Failure(f"{self.name}: {' '.join(map(str, words))}: exit {done.returncode}: {said}")
        return done

    def out(self, *words, **options):
        """What a command in the node prints."""
        return self.run(*words, **options).stdout.strip()

    def popen(self, *words, user=None, **options):
        """Starts a command in the node, for whoever wants to do something meanwhile."""
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(self.words(*words, user=user), text=True, errors="replace", **options)

    def path(self, inside):
        """A path of the node as this host sees it, also when the node is down and has written it."""
        root = Path(f"/proc/{self.leader}/root") if self.is_up() else self.directory / "upper"
        return root / str(inside).lstrip("/")

    def write(self, inside, content, mode=0o644):
        """Makes a file in the node, with the directories above it."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)

    def journal(self, *words):
        """What `journalctl` says with these options; of a node that is down, too."""
        if self.is_up():
            self.run("journalctl", "--sync", check=False)
        files = self.directory / "upper/var/log/journal"
        return command("journalctl", "--quiet", "--no-pager", f"--directory={files}", *words, check=False).stdout
