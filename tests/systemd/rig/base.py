"""Base trees: a minimal installation of a distribution, made once and shared by every run.

Nodes never write into one; they boot from an overlay above it.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

# Outside of the build directory: `make clean` is no reason to download a distribution again.
CACHE = Path(os.environ.get("RECEPTOR_RIG_CACHE", "/var/tmp/receptor-rig"))

PACKAGES = [
    "systemd", "systemd-sysv",
    "dbus", "dbus-user-session", "libpam-systemd",  # user managers
    "iproute2", "procps", "python3",
]
# For tests of packages; with dependencies that only apt can resolve.
MORE_PACKAGES = [
    "ansible-core",  # what the runner plugin is for
    "rpm",  # the scriptlets of an .rpm can run on Debian, too
]

# They load the machine, or fail in a container, while a test waits.
MASKED = [
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "man-db.timer", "systemd-firstboot.service", "systemd-hwdb-update.service",
]

# Raised when what is done to a base below changes.
GENERATION = 1


class Failure(Exception):
    """The rig itself could not do what it was asked to."""


def command(*words, check=True, **options):
    """Runs a program on the host and returns what it said as text."""
    options.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run([str(word) for word in words], text=True, errors="replace", capture_output=True, **options)
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise Failure(f"{' '.join(map(str, words))}: exit {done.returncode}: {said}")
    return done


def mirror():
    """The mirror that this host itself installs from."""
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for place in places:
        if not place.is_file():
            continue
        text = place.read_text()
        for stanza in re.split(r"\n\s*\n", text):
            fields = dict(re.findall(r"^([\w-]+):[ \t]*(.+)$", stanza, re.M))
            if "deb" in fields.get("Types", "").split() and "-security" not in fields.get("Suites", "-security"):
                return fields["URIs"].split()[0]
        line = re.search(r"^deb\s+(?:\[[^]]*]\s+)?(\S+)\s+(?!\S*-security)\S+", text, re.M)
        if line:
            return line[1]
    raise Failure("no Debian mirror in the apt sources of this host")


def base_tree(suite):
    """The directory of a suite's base tree, which is made if there is none: minutes, once."""
    key = hashlib.sha256(f"{GENERATION} {suite} {PACKAGES} {MORE_PACKAGES} {MASKED}".encode()).hexdigest()[:8]
    tree = CACHE / f"{suite}-{key}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{suite}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            print(f"== making {tree} (once)", flush=True)
            unfinished = tree.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            command("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, unfinished, mirror())
            install(unfinished, MORE_PACKAGES)
            adapt(unfinished)
            unfinished.rename(tree)
    return tree


def install(tree, packages):
    """Installs packages with apt, from the mirror that debootstrap noted."""
    shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    for step in [["update"], ["install", "--no-install-recommends", "-y", *packages]]:
        command("chroot", tree, "apt-get", "-q", "-o", "Dpkg::Options::=--force-unsafe-io", *step, env=environment)


def adapt(tree):
    """Makes a fresh installation the base of many hosts."""
    # Each node has its own name, and makes its own id at its first boot.
    (tree / "etc/machine-id").write_text("")
    for of_this_host in ["var/lib/dbus/machine-id", "etc/hostname", "etc/resolv.conf"]:
        (tree / of_this_host).unlink(missing_ok=True)
    (tree / "etc/resolv.conf").write_text("")
    # On disk, so that it can be read from outside when the node is gone.
    (tree / "var/log/journal").mkdir(exist_ok=True)
    journald = tree / "etc/systemd/journald.conf.d/rig.conf"
    journald.parent.mkdir(parents=True, exist_ok=True)
    journald.write_text("[Journal]\nStorage=persistent\nSystemMaxUse=64M\nRateLimitIntervalSec=0\n")
    for unit in MASKED:
        link = tree / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    # A node's disk is memory: syncing package files only costs time.
    (tree / "etc/dpkg/dpkg.cfg.d/rig").write_text("force-unsafe-io\n")
    for cache in ["var/cache/apt/archives", "var/lib/apt/lists"]:
        shutil.rmtree(tree / cache, ignore_errors=True)
