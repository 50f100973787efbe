"""A cable between two nodes.

Owns a pair of interfaces, one in each node's network namespace, with an address of its own in both families, and the rules that cut it.
"""

from .base import command

TABLE = "cable"


class Link:
    def __init__(self, number, one, other):
        self.ends = [(one, f"to-{other.name}"), (other, f"to-{one.name}")]
        self.number = number
        (first, name), (second, other_name) = self.ends
        command("ip", "-n", first.full_name, "link", "add", name, "type", "veth",
                "peer", "name", other_name, "netns", second.full_name)
        for node, interface in self.ends:
            on = ["ip", "-n", node.full_name]
            command(*on, "address", "add", f"{self.address(node)}/24", "dev", interface)
            command(*on, "address", "add", f"{self.address6(node)}/64", "dev", interface, "nodad")
            command(*on, "link", "set", interface, "up")
        one.neighbors[self.address(other)] = other.name
        other.neighbors[self.address(one)] = one.name

    def position(self, node):
        return 1 + [end for end, _ in self.ends].index(node)

    def address(self, node):
        return f"10.77.{self.number}.{self.position(node)}"

    def address6(self, node):
        return f"fd77:0:0:{self.number:x}::{self.position(node)}"

    def cut(self):
        """Packets vanish in both directions, as on a broken way: neither end is told."""
        for node, interface in self.ends:
            rules = (f"table netdev {TABLE}-{interface} {{ chain in {{ "
                     f"type filter hook ingress device {interface} priority 0; policy drop; }} }}")
            command("ip", "netns", "exec", node.full_name, "nft", "-f", "-", input=rules, stdin=None)

    def mend(self):
        for node, interface in self.ends:
            command("ip", "netns", "exec", node.full_name, "nft", "delete", "table", "netdev", f"{TABLE}-{interface}")
