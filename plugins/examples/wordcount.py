#!/usr/bin/env python3
"""A Receptor plugin in Python. Counts the words of each text in {"texts": ["two words", ...]}."""
import json, sys

def say(**message):
    print(json.dumps(message), flush=True)

say(type="hello", protocol=1, name="wordcount", version="1.0.0", features=["file"],
    actions={"execute": {"example": {"texts": ["two words"]}}})
for line in sys.stdin:
    job = json.loads(line)
    if job["type"] != "execute":
        continue
    try:
        payload = job["payload"] if "payload" in job else json.load(open(job["payload_file"]))
        for index, text in enumerate(payload["texts"]):
            say(type="data", id=job["id"], data={"index": index, "words": len(text.split())})
            say(type="status", id=job["id"], progress=[index + 1, len(payload["texts"])])
        say(type="done", id=job["id"], code=0)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        say(type="error", id=job["id"], error={"code": "invalid-payload", "message": repr(e)})
