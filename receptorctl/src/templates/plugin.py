#!/usr/bin/env python3
"""A Receptor plugin: @NAME@:execute greets everybody in {"names": ["…"]}.

Messages are JSON, one a line: jobs come on stdin, results go to stdout. stderr goes to the journal of the node.
"""

import json
import sys


def say(**message):
    print(json.dumps(message), flush=True)


def load(job):
    """The payload of a job; a large one comes in a file."""
    if "payload_file" in job:
        with open(job["payload_file"], encoding="utf-8") as file:
            return json.load(file)
    return job["payload"]


def execute(job):
    names = load(job)["names"]
    for number, name in enumerate(names, 1):
        say(type="data", id=job["id"], data={"greeting": f"hello {name}"})
        say(type="status", id=job["id"], progress=[number, len(names)])
    say(type="done", id=job["id"], code=0)


# The first line says who this is and what it can do. Reading comes after it.
say(
    type="hello", protocol=1, name="@NAME@", version="0.1.0", features=["file"],
    actions={"execute": {"about": "Greets", "example": {"names": ["world"]}}},
)
for line in sys.stdin:
    message = json.loads(line)
    if message["type"] != "execute":  # the daemon's hello, and whatever comes in later versions
        continue
    try:
        execute(message)
    except (KeyError, TypeError, ValueError) as error:
        say(type="error", id=message["id"], error={"code": "invalid-payload", "message": repr(error)})
