"""What of a service manager lets works outlive a restart of their daemon.

keep DIR RECEPTORD    keeps descriptors, and starts a holder for each connection to DIR/receptor-worker.sock
launch DIR COMMAND    becomes COMMAND, with the descriptors that are kept
"""
import os
import select
import signal
import socket
import subprocess
import sys


def listen(path, kind):
    new = path + ".new"
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(new)
    if kind != socket.SOCK_DGRAM:
        listener.listen(64)
    os.rename(new, path)
    return listener


class Keeper:
    def __init__(self, directory, receptord):
        self.directory, self.receptord = directory, receptord
        self.kept, self.forward, self.holders = {}, None, []
        self.workers = listen(directory + "/receptor-worker.sock", socket.SOCK_SEQPACKET)
        self.notify = listen(directory + "/notify", socket.SOCK_DGRAM)
        # As for a service that stays down.
        signal.signal(signal.SIGUSR1, lambda *_: [self.forget(name) for name in list(self.kept)])
        self.launches = listen(directory + "/launch", socket.SOCK_STREAM)

    def serve(self):
        tasks = {self.workers: self.hold, self.notify: self.told, self.launches: self.launch}
        tasks = {source.fileno(): task for source, task in tasks.items()}
        while True:
            poll = select.poll()
            for source in tasks:
                poll.register(source, select.POLLIN)
            for fd in self.kept.values():
                poll.register(fd, 0)
            ready = [fd for fd, _ in poll.poll(1000)]
            # What the daemon has said comes before whatever happened because of it.
            for fd in sorted(ready, key=lambda fd: fd != self.notify.fileno()):
                if fd in tasks:
                    tasks[fd]()
            for name, fd in list(self.kept.items()):
                if fd in ready:
                    self.forget(name)
            self.holders = [holder for holder in self.holders if holder.poll() is None]

    def hold(self):
        connection, _ = self.workers.accept()
        with connection:
            command = [self.receptord, "hold-plugin"]
            environment = {"PATH": os.environ["PATH"]}
            self.holders.append(subprocess.Popen(command, stdin=connection, env=environment))

    def told(self):
        text, fds, _, _ = socket.recv_fds(self.notify, 4096, 16)
        said = dict(line.split("=", 1) for line in text.decode().splitlines() if "=" in line)
        if "FDSTORE" in said:
            (self.kept[said["FDNAME"]],) = fds
            self.note()
        elif "FDSTOREREMOVE" in said:
            self.forget(said["FDNAME"])
        elif self.forward:
            try:
                self.notify.sendto(text, self.forward)
            except OSError:
                pass

    def forget(self, name):
        fd = self.kept.pop(name, None)
        if fd is not None:
            os.close(fd)
            self.note()

    def note(self):
        with open(self.directory + "/kept.new", "w") as file:
            file.writelines(name + "\n" for name in self.kept)
        os.rename(self.directory + "/kept.new", self.directory + "/kept")

    def launch(self):
        client, _ = self.launches.accept()
        with client:
            self.forward = client.recv(4096).decode()
            names = ":".join(self.kept) or "-"
            socket.send_fds(client, [names.encode()], list(self.kept.values()))


def launch(directory, command):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as keeper:
        keeper.connect(directory + "/launch")
        keeper.send(os.environ["NOTIFY_SOCKET"].encode())
        names, fds, _, _ = socket.recv_fds(keeper, 65536, 250)
    environment = dict(os.environ, NOTIFY_SOCKET=directory + "/notify")
    # Out of the way of the places that they are to have.
    high = [os.dup2(fd, 500 + index) for index, fd in enumerate(fds)]
    for index, fd in enumerate(high):
        os.dup2(fd, 3 + index, inheritable=True)
    os.closerange(3 + len(fds), 1000)
    if fds:
        environment.update(
            LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names.decode()
        )
    os.execvpe(command[0], command, environment)


if sys.argv[1] == "keep":
    Keeper(sys.argv[2], sys.argv[3]).serve()
launch(sys.argv[2], sys.argv[3:])
