#!/usr/bin/env python3
"""A controller: sends a directive through the mesh and prints the responses as they come.
Usage: controller.py SOCKET DIRECTIVE RECIPIENT [PAYLOAD-AS-JSON]"""
import json, socket, sys

path, directive, recipient, *payload = sys.argv[1:]
command = {"command": "send", "directive": directive, "recipient": recipient}
if payload:
    command["payload"] = json.loads(payload[0])
with socket.socket(socket.AF_UNIX) as daemon:
    daemon.connect(path)
    stream = daemon.makefile("rwb")
    assert stream.readline().startswith(b"Receptor Control, node ")
    stream.write(json.dumps(command).encode() + b"\n")
    stream.flush()
    for reply in map(json.loads, stream):
        raw = stream.read(reply["size"]) if "size" in reply else None
        print(reply["type"], raw or reply.get("data", reply.get("text", reply.get("error"))), flush=True)
        if reply.get("eof"):
            sys.exit(0 if reply.get("code", 1) == 0 else 1)
sys.exit("the daemon went away")
