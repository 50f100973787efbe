#!/usr/bin/env python3
"""A plugin that breaks the rule that its file name or its action names.

With "cancel" in its file name it claims to listen to cancels; with "serve" it serves; with
"plain" it does not claim to read payloads by file.
"""
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time

NAME = os.path.basename(sys.argv[0]).split(".")[0]
ACTIONS = {}
SUMS = {}


def raw(data):
    os.write(1, data)


def say(**message):
    data = (json.dumps(message) + "\n").encode()
    while data:
        data = data[os.write(1, data):]


def action(**descriptor):
    def add(function):
        ACTIONS[function.__name__.replace("_", "-")] = (function, descriptor)
        return function
    return add


def hello(**changes):
    message = {
        "type": "hello", "protocol": 1, "name": NAME, "version": "1.0.0",
        "mode": "serve" if "serve" in NAME else "job",
        "features": ([] if "plain" in NAME else ["file"]) + (["cancel"] if "cancel" in NAME else []),
        "actions": {name: descriptor for name, (_, descriptor) in ACTIONS.items()},
    }
    if message["mode"] == "serve":
        message["actions"] = {
            name: d for name, d in message["actions"].items() if d.get("output", "json") == "json"
        }
    message.update(changes)
    say(**message)


def forever():
    while True:
        time.sleep(3600)


def deaf():
    """Ignores what can be ignored, for as long as it lives."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    forever()


def orphan(how):
    """Forks a process that outlives this one; returns its number."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        pid = os.fork()
        if pid:
            os.write(write, str(pid).encode())
            os._exit(0)
        how()
        os._exit(0)
    os.close(write)
    pid = int(os.read(read, 20))
    os.wait()
    return pid


def close_all():
    for fd in range(3):
        os.close(fd)


# What an ordinary job does.

@action()
def good(job, payload):
    say(type="data", id=job, data=payload)
    say(type="done", id=job, code=0, result={"status": "successful"})


@action(payload="none")
def failed(job, payload):
    say(type="done", id=job, code=2, result={"failed": ["db1"]})


@action(payload="none")
def refuses(job, payload):
    say(type="error", id=job, error={
        "code": "missing-dependency", "message": "frobnicate was not found in PATH",
        "caused_by": ["no such file"], "details": {"command": "frobnicate"}})


@action(payload="none")
def slow(job, payload):
    time.sleep(0.3)
    say(type="done", id=job, code=0)


@action(payload="json")
def many(job, payload):
    for n in range(payload["count"]):
        say(type="data", id=job, data={"n": n, "fill": "x" * payload.get("size", 0)})
    say(type="done", id=job, code=0)


@action(payload="file", idempotent=True)
def scribble(job, payload):
    """Uses its payload as room to work in."""
    with open(payload, "r+b") as file:
        file.write(b"mine")
        file.seek(0, os.SEEK_END)
        file.write(b"and more")
    say(type="done", id=job, code=0, result=os.stat(payload).st_size)


@action(payload="file")
def by_file(job, payload):
    with open(payload, "rb") as file:
        bytes = file.read()
    mode = oct(os.stat(payload).st_mode & 0o777)
    say(type="data", id=job, data={
        "size": len(bytes), "path": payload, "mode": mode,
        "sum": hashlib.sha256(bytes).hexdigest() == SUMS.pop(job)})
    say(type="done", id=job, code=0)


@action(payload="text", max_payload=100)
def small(job, payload):
    say(type="data", id=job, text=payload)
    say(type="done", id=job, code=0)


@action(payload="none")
def surroundings(job, payload):
    umask = os.umask(0o077)
    with open("/proc/self/status") as file:
        status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
        status = {key: value.strip() for key, value in status.items()}
    say(type="data", id=job, data={
        "environment": dict(os.environ), "umask": umask, "cwd": os.getcwd(),
        "mode": os.stat(".").st_mode & 0o777, "session": os.getsid(0) == os.getpid(),
        "descriptors": sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1],
        "no_new_privs": status["NoNewPrivs"], "blocked": status["SigBlk"],
        "ignored": status["SigIgn"], "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "core": resource.getrlimit(resource.RLIMIT_CORE)})
    say(type="done", id=job, code=0)


@action(payload="none")
def result_file(job, payload):
    os.mkdir("out")
    with open("out/artifacts.zip", "wb") as file:
        file.write(b"x" * 100_000)
    say(type="data", id=job, file="out/artifacts.zip", name="artifacts.zip", size=100_000)
    say(type="data", id=job, base64="AAECAw==")
    with open("small", "w") as file:
        file.write("12345")
    say(type="data", id=job, file="small")
    say(type="done", id=job, code=0)


@action(payload="none")
def statuses(job, payload):
    for n in range(1000):
        say(type="status", id=job, state="running", message=f"step {n}", progress=[n, 1000])
    time.sleep(0.6)
    say(type="status", id=job, message="x" * 100_000)
    time.sleep(0.3)
    say(type="done", id=job, code=0)


@action(payload="none")
def untidy(job, payload):
    """Leaves read-only directories and links to the outside behind."""
    os.makedirs("a/b/c")
    open("a/b/c/file", "w").close()
    os.symlink("/etc", "a/b/etc")
    os.chmod("a/b/c", 0o500)
    os.chmod("a/b", 0o500)
    say(type="done", id=job, code=0)


@action(payload="none", output="text")
def text(job, payload):
    raw(b"one\n\ntwo \xff\nlast without newline")
    sys.exit(4)


@action(payload="none", output="bytes")
def stream(job, payload):
    for _ in range(50):
        raw(b"\x00\xff\n" * 1000)
    sys.exit(0)


# Broken rules of the protocol.

@action(payload="none")
def bad_json(job, payload):
    raw(b"TASK [install] " + b"*" * 1000 + b"\n")
    forever()


@action(payload="none")
def not_utf8(job, payload):
    raw(b'{"type":"data","id":"' + job.encode() + b'","text":"\xff\xfe"}\n')
    forever()


@action(payload="none")
def long_line(job, payload):
    say(type="data", id=job, text="x" * (1 << 20))
    forever()


@action(payload="none")
def endless_line(job, payload):
    while True:
        raw(b"x" * 65536)


@action(payload="none")
def unknown_id(job, payload):
    say(type="data", id="somebody-else", text="for you")
    forever()


@action(payload="none")
def second_hello(job, payload):
    hello()
    forever()


@action(payload="none")
def data_after_done(job, payload):
    say(type="done", id=job, code=0, result="first")
    say(type="data", id=job, text="one more thing")


@action(payload="none")
def two_dones(job, payload):
    say(type="done", id=job, code=0, result="first")
    say(type="done", id=job, code=7, result="second")
    say(type="error", id=job, error={"code": "internal", "message": "third"})


@action(payload="none")
def no_exit(job, payload):
    say(type="done", id=job, code=0)
    deaf()


# Bad ends.

@action(payload="none")
def no_answer(job, payload):
    say(type="data", id=job, text="half")
    os._exit(0)


@action(payload="none")
def exit_three(job, payload):
    sys.stderr.write("first line\nthe disk is on fire\n")
    sys.stderr.flush()
    os._exit(3)


@action(payload="none")
def crash(job, payload):
    raw(b'{"type":"done","id":"' + job.encode())
    os.kill(os.getpid(), signal.SIGKILL)


@action(payload="none")
def no_newline(job, payload):
    raw(json.dumps({"type": "done", "id": job, "code": 0}).encode())
    os._exit(0)


@action(payload="none")
def closes_stdout(job, payload):
    os.close(1)
    forever()


@action(payload="none")
def hold_stdout(job, payload):
    pid = orphan(deaf)
    say(type="data", id=job, data={"pid": pid})
    os._exit(0)


# Floods.

@action(payload="none")
def flood_stdout(job, payload):
    n = 0
    while True:
        say(type="data", id=job, data={"n": n, "fill": "x" * 1000})
        n += 1


@action(payload="none")
def flood_stderr(job, payload):
    for n in range(50_000):
        sys.stderr.write(f"<7>line {n} " + "x" * 80 + "\n")
    sys.stderr.flush()
    say(type="done", id=job, code=0)


@action(payload="none")
def huge_file(job, payload):
    with open("huge", "wb") as file:
        file.truncate(1 << 30)
    say(type="data", id=job, file="huge")
    forever()


# Files that are not theirs.

@action(payload="text")
def link_out(job, payload):
    os.symlink(payload, "innocent")
    say(type="data", id=job, file="innocent")
    forever()


@action(payload="text")
def link_on_the_way(job, payload):
    os.symlink(os.path.dirname(payload), "out")
    say(type="data", id=job, file="out/" + os.path.basename(payload))
    forever()


@action(payload="none")
def wrong_size(job, payload):
    with open("file", "w") as file:
        file.write("123")
    say(type="data", id=job, file="file", size=4)
    forever()


@action(payload="none")
def wrong_sum(job, payload):
    right = hashlib.sha256(b"123").hexdigest().upper()
    for name, sum in (("right", right), ("wrong", "00" * 32)):
        with open(name, "w") as file:
            file.write("123")
        say(type="data", id=job, file=name, sha256=sum)
    forever()


# Those who would not go.

@action(payload="none")
def sleepy(job, payload):
    say(type="data", id=job, data={"pid": os.getpid()})
    forever()


@action(payload="none", idempotent=True)
def sleepy_again(job, payload):
    sleepy(job, payload)


@action(payload="none")
def ignore_term(job, payload):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(type="data", id=job, data={"pid": os.getpid()})
    forever()


@action(payload="none")
def escape(job, payload):
    """A grandchild in a session of its own that ignores SIGTERM."""
    pid = orphan(deaf)
    say(type="data", id=job, data={"pid": pid})
    forever()


@action(payload="none")
def escape_and_end(job, payload):
    pid = orphan(deaf)
    say(type="data", id=job, data={"pid": pid})
    say(type="done", id=job, code=0)


@action(payload="none")
def vanish(job, payload):
    """A grandchild that hides session, environment and descriptors."""
    def hidden():
        close_all()
        os.chdir("/")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.execve("/bin/sleep", ["sleep", "3600"], {})
    pid = orphan(hidden)
    say(type="data", id=job, data={"pid": pid})
    say(type="done", id=job, code=0)


@action(payload="none")
def nameless(job, payload):
    """A grandchild that hides session and environment, but stays in the directory."""
    def hidden():
        close_all()
        os.execve("/bin/sleep", ["sleep", "3600"], {})
    pid = orphan(hidden)
    say(type="data", id=job, data={"pid": pid})
    say(type="done", id=job, code=0)


@action(payload="none")
def stubborn_tree(job, payload):
    """Children of children that ignore SIGTERM, some in sessions of their own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pids = [orphan(deaf)]
    for new_session in (False, True):
        child = subprocess.Popen(
            ["/bin/sh", "-c", "trap '' TERM; sleep 3600 & echo $!; echo $$; wait"],
            stdout=subprocess.PIPE, start_new_session=new_session)
        pids += [int(child.stdout.readline()), int(child.stdout.readline())]
    say(type="data", id=job, data={"pids": pids})
    forever()


@action(payload="none")
def cancel_message(job, payload):
    """Ends when it is told to, and says why."""
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "cancel":
            say(type="data", id=job, data=message)
            say(type="error", id=job, error={"code": "canceled", "message": "as you wish"})
            return


@action(payload="none")
def finish_when_cancelled(job, payload):
    sys.stdin.readline()
    say(type="done", id=job, code=0, result="just done")


@action(payload="none", idempotent=True)
def finish_again(job, payload):
    say(type="data", id=job, data={"pid": os.getpid()})
    finish_when_cancelled(job, payload)


# Served.

@action(payload="none")
def later(job, payload):
    """Answers when the next job is done."""
    LATER.append(job)
    say(type="data", id=job, data={"pid": os.getpid()})


@action(payload="none", idempotent=True)
def later_again(job, payload):
    later(job, payload)


@action(payload="none")
def wake(job, payload):
    say(type="done", id=job, code=0)
    while LATER:
        say(type="done", id=LATER.pop(), code=0, result="later")


@action(payload="json")
def when_there(job, payload):
    """Answers when this file is there."""
    def wait():
        while not os.path.exists(payload):
            time.sleep(0.01)
        say(type="done", id=job, code=0)
    threading.Thread(target=wait, daemon=True).start()


@action(payload="none")
def about_ended(job, payload):
    say(type="done", id=job, code=0)
    say(type="data", id=job, text="one more thing")


@action(payload="none")
def exit_clean(job, payload):
    say(type="done", id=job, code=0)
    os._exit(0)


@action(payload="none")
def hold(job, payload):
    """Reads nothing until there is a file "go" in its directory."""
    say(type="data", id=job, data={"directory": os.getcwd()})
    while not os.path.exists("go"):
        time.sleep(0.01)
    say(type="done", id=job, code=0)


LATER = []


def execute(message):
    function, descriptor = ACTIONS[message["action"]]
    SUMS[message["id"]] = message.get("payload_sha256")
    for key in ("payload", "payload_text", "payload_base64", "payload_file"):
        if key in message:
            return function(message["id"], message[key])
    return function(message["id"], None)


def main():
    if NAME == "no-hello":
        return
    if NAME == "mute":
        deaf()
    if NAME == "late-hello":
        time.sleep(1.5)
    if NAME == "dies-early":
        sys.stderr.write("cannot import name frobnicate\n")
        sys.exit(3)
    if NAME == "bad-hello":
        raw(b"Hello, I am a plugin\n")
        forever()
    if NAME == "raw-hello":
        raw(b'{"type":"hello","protocol":1,"name":"raw-hello","version":"\xff","actions":{"a":{}}}\n')
        forever()
    if NAME == "no-newline":
        raw(b'{"type":"hello"')
        forever()
    if NAME == "talks-first":
        say(type="log", id="x", message="here I come")
    hello(**{
        "huge-hello": {"about": "x" * 70_000},
        "endless-hello": {"about": "x" * 7_000_000},
        "wrong-name": {"name": "somebody"},
        "wrong-protocol": {"protocol": 2},
        "no-actions": {"actions": {}},
        "not-ready": {"ready": False, "reason": "frobnicate is not installed"},
        "not-ready-mute": {"ready": False, "reason": "frobnicate is not installed"},
        "two-at-once": {"max_jobs": 2},
        "serve-many": {"max_jobs": 16},
    }.get(NAME, {}))
    if NAME in ("lingers", "never-reads"):
        deaf()
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "hello" and NAME == "thinks-twice":
            missing = message.get("config", {}).get("command")
            say(type="ready", ready=not missing, reason=f"{missing} was not found")
        if message["type"] == "ping" and "pong" in NAME:
            say(type="pong", nonce=message["nonce"])
        if message["type"] == "cancel" and "obedient" in NAME and message["id"] in LATER:
            LATER.remove(message["id"])
            say(type="error", id=message["id"], error={"code": "canceled", "message": "stopped"})
        if message["type"] != "execute":
            continue
        if NAME == "not-ready-mute":
            return
        if NAME == "not-ready":
            return ACTIONS["refuses"][0](message["id"], None)
        execute(message)


main()
