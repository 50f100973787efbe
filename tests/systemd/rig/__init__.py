"""Nodes with a booted systemd of their own, and the cables between them.

Owns everything that is needed to have several hosts on one: base trees of distributions (`base`), containers that
boot from them (`node`), network links that can be cut (`link`), and a session that holds them together and leaves nothing behind
(`session`). Knows nothing about Receptor. Python's standard library alone.
"""

from .base import Failure, base_tree, command
from .link import Link
from .node import Node
from .session import Session, collect_garbage

__all__ = ["Failure", "Link", "Node", "Session", "base_tree", "collect_garbage", "command"]
