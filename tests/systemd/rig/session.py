"""A session: the nodes and links of one test, and the promise that nothing is left of them.

A session belongs to the process that made it. Its nodes die with that process, and what is left in directories, control groups and
namespaces when it was killed is removed by the next `collect_garbage`.
"""

import os
import shutil
from pathlib import Path

from .base import Failure, base_tree
from .link import Link
from .node import Node, clean_up, start_time

# In memory: a node's syncs cost nothing, and neither does its removal.
RUN = Path("/dev/shm/receptor-rig")


class Session:
    def __init__(self, name):
        if os.geteuid() != 0:
            raise Failure("booting nodes needs root")
        self.name = name
        self.directory = RUN / name
        # It has its owner from the moment it can be seen, so that nobody takes it for garbage.
        unfinished = RUN / f".{name}"
        unfinished.mkdir(parents=True)
        owner = os.getpid()
        (unfinished / "owner").write_text(f"{owner} {start_time(owner)}")
        unfinished.rename(self.directory)
        self.nodes, self.links = [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def node(self, name, *, suite=None, layers=None):
        """A node that is not booted yet: of a suite, or above layers that were kept before."""
        node = Node(self, name, layers or [base_tree(suite)])
        self.nodes.append(node)
        return node

    def link(self, one, other):
        """A cable between two nodes that are not booted yet, which know each other by name from then on."""
        link = Link(len(self.links), one, other)
        self.links.append(link)
        return link

    def boot(self):
        """Boots all nodes at once."""
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_until_booted()

    def keep(self, node, directory):
        """Shuts a node down and keeps what it has written; returns the layers from which others boot as it would."""
        node.power_off()
        upper = node.directory / "upper"
        # What makes one host another than the next.
        (upper / "etc/machine-id").write_text("")
        for own in ["var/log/journal", "var/lib/systemd/random-seed", "var/lib/dbus/machine-id"]:
            path = upper / own
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        (upper / "var/log/journal").mkdir(parents=True)
        upper.rename(directory)
        return [directory, *node.layers]

    def close(self):
        for node in self.nodes:
            node.destroy()
        shutil.rmtree(self.directory, ignore_errors=True)


def collect_garbage():
    """Removes the sessions of processes that are gone."""
    for directory in RUN.glob("[!.]*"):
        try:
            pid, started = (directory / "owner").read_text().split()
        except (OSError, ValueError):
            pid, started = 0, None
        if started is not None and start_time(pid) == started:
            continue
        for node in directory.iterdir():
            if node.is_dir():
                clean_up(f"receptor-{directory.name}-{node.name}")
        shutil.rmtree(directory, ignore_errors=True)
