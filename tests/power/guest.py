"""The machine whose power is cut: User-Mode Linux with a node inside, its images, its serial lines.

Charter: builds both servers and the images, boots the guest, carries bytes, kills all of the guest at once.

Invariant: the guest's page cache dies with the guest; what its kernel has handed to the block device survives in the
host's. So a write that was not synced is lost, as in a power cut, because the guest never writes back by itself (init).

Subtlety: an answer counts once it was read here. What lies in the pipe when the guest dies had left the machine, so it
is read to its end after the kill, and counts.
"""

import os
import pathlib
import selectors
import shutil
import signal
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNEL = "linux.uml"
BUSYBOX = "/bin/busybox"
PACKAGES = "user-mode-linux busybox-static e2fsprogs"
LINES = 6
MEMORY = "1G"
DISK_BYTES = 4 << 30
# No boot takes as long, even on a busy machine.
PATIENCE = 120.0
# No guest in good order says as many lines.
SAID_MOST = 5000


class Broken(Exception):
    """The test itself cannot go on; says nothing about the server."""


def missing():
    """What must be installed first, or an empty string."""
    found = all(shutil.which(tool) for tool in (KERNEL, "mke2fs", "cargo", "ldd"))
    return "" if found and os.access(BUSYBOX, os.X_OK) else PACKAGES


def build_servers():
    """Name → path: the release build, and one with its journal's sync switched off."""
    flags = (os.environ.get("RUSTFLAGS", "") + " --cfg quorate_no_sync").strip()
    plain, unsynced = ROOT / "target", ROOT / "target" / "no-sync"
    for target, extra in ((plain, {}), (unsynced, {"RUSTFLAGS": flags})):
        command = ["cargo", "build", "--quiet", "--release", "-p", "quorate-server"]
        environment = dict(os.environ, CARGO_TARGET_DIR=str(target), **extra)
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return {"sync": plain / "release" / "quorate-server", "no-sync": unsynced / "release" / "quorate-server"}


def libraries(binary):
    """The shared libraries of a binary, its loader among them."""
    listed = subprocess.run(["ldd", binary], check=True, capture_output=True, text=True).stdout
    words = (word for line in listed.splitlines() for word in line.split())
    return [word for word in words if word.startswith("/")]


def make_root(work, servers):
    """An image with busybox, both servers, their libraries and `init`; never written to."""
    tree = work / "root"
    for name in ("bin", "dev", "proc", "tmp", "data"):
        (tree / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin/busybox")
    for applet in subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    for name, path in servers.items():
        shutil.copy(path, tree / f"bin/quorate-{name}")
        for library in libraries(path):
            copy = tree / library.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, copy)
    shutil.copy(HERE / "init", tree / "init")
    os.chmod(tree / "init", 0o755)
    body = bytes(range(256)) * 4096
    (tree / "volume").write_bytes(b"*3\r\n$3\r\nSET\r\n$6\r\nvolume\r\n$%d\r\n%s\r\n" % (len(body), body))
    size = sum(file.stat().st_size for file in tree.rglob("*") if file.is_file() and not file.is_symlink())
    return make_image(work / "root.img", size + (32 << 20), "-d", str(tree))


def make_disk(path):
    """A fresh file system for the data."""
    return make_image(path, DISK_BYTES)


def make_image(path, size, *options):
    path.unlink(missing_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", *options, str(path)], check=True)
    return path


def bytes_read(process):
    return int(pathlib.Path(f"/proc/{process}/io").read_text().split()[1])


class Guest:
    """One life of the machine, from power on to the cut."""

    alive = None

    def __init__(self, work, root, disk, build, journal="ordered", settle=False):
        self.said = []
        self.inbox = [bytearray() for _ in range(LINES)]
        self.ended = False
        self._console = bytearray()
        self._outbox = [bytearray() for _ in range(LINES + 1)]
        self._selector = selectors.DefaultSelector()
        theirs, channels, self._to = [], [], []
        for line in range(LINES + 1):
            (read_in, write_in), (read_out, write_out) = os.pipe(), os.pipe()
            theirs += [read_in, write_out]
            channels.append(f"ssl{line}=fd:{read_in},fd:{write_out}")
            self._to.append(write_in)
            self._listen(read_out, line)
            os.set_blocking(write_in, False)
        console, says = os.pipe()
        self._listen(console, None)
        command = [KERNEL, f"mem={MEMORY}", f"ubd0r={root}", f"ubd1={disk}", "root=/dev/ubda", "ro", "init=/init"]
        command += ["quiet", "con=null", f"con0=null,fd:{says}", "ssl=null", *channels, f"uml_dir={work / 'uml'}"]
        command += [f"BUILD={build}", f"JOURNAL={journal}", f"SETTLE={int(settle)}"]
        # What the kernel itself says goes the same way, never to a file: a dying guest can say gigabytes.
        options = {"stdin": subprocess.DEVNULL, "stdout": says, "stderr": says, "start_new_session": True}
        self._process = subprocess.Popen(command, pass_fds=[*theirs, says], **options)
        # However this script ends, the guest must not outlive it.
        watch = ["sh", "-c", f"read -r _; kill -9 -- -{self._process.pid}"]
        self._watch = subprocess.Popen(watch, stdin=subprocess.PIPE, start_new_session=True)
        Guest.alive = self
        for fd in (*theirs, says):
            os.close(fd)

    def _listen(self, fd, line):
        os.set_blocking(fd, False)
        self._selector.register(fd, selectors.EVENT_READ, line)

    def send(self, line, data):
        """Hands bytes to a serial line; they go out as it takes them."""
        self._outbox[line] += data
        self._flush(line)

    def _flush(self, line):
        out = self._outbox[line]
        try:
            while out:
                del out[: os.write(self._to[line], out[:4096])]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            out.clear()

    def pump(self, seconds):
        """Carries bytes for at most this long, or until some have come."""
        if any(self._outbox):
            seconds = min(seconds, 0.002)
        for line in range(len(self._outbox)):
            self._flush(line)
        for key, _ in self._selector.select(max(seconds, 0)):
            self._take(key)

    def _take(self, key):
        data = os.read(key.fd, 1 << 16)
        if not data:
            self._selector.unregister(key.fd)
            os.close(key.fd)
            self.ended = self.ended or key.data is None
        elif key.data is None:
            self._console += data
            *whole, rest = bytes(self._console).split(b"\n")
            self._console[:] = rest
            self.said += [line.decode(errors="replace").strip() for line in whole]
            if len(self.said) > SAID_MOST:
                raise Broken("\n".join(["the guest says too much:", *self.said[-20:]]))
        elif key.data < LINES:
            self.inbox[key.data] += data

    def heard(self, words):
        return any(line.startswith(words) for line in self.said)

    def wait_for(self, words, until=None):
        """Whether these words came before `until`, or before the guest's end."""
        limit = time.monotonic() + PATIENCE
        while not self.heard(words):
            now = time.monotonic()
            if self.heard("POWER broken") or now > limit:
                raise Broken("\n".join(["the guest did not come up:", *self.said[-20:]]))
            if self.ended or self.heard("POWER exit") or (until is not None and now >= until):
                return False
            self.pump(0.05 if until is None else min(0.05, until - now))
        return True

    def hang_disk(self):
        """Stops the kernel's disk thread: from here on nothing reaches the disk, while everything else goes on. It is the
        one of the kernel's own host processes that has read the most."""
        kernel = pathlib.Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        try:
            thread = max(kernel.read_text().split(), key=bytes_read)
            os.kill(int(thread), signal.SIGSTOP)
        except (OSError, ValueError) as error:
            raise Broken(f"the guest's disk thread was not found: {error}") from error

    def cut(self):
        """Cuts the power: the kernel, its disk thread and all its processes at once; then reads what had left."""
        self.kill()
        # Everything that could still write to the disk holds the pipes: their end is the end of all of it.
        limit = time.monotonic() + PATIENCE
        while self._selector.get_map():
            if time.monotonic() > limit:
                raise Broken("a part of the guest outlived the cut")
            self.pump(0.05)
        for fd in self._to:
            os.close(fd)
        self._selector.close()

    def kill(self):
        """Ends the guest; its disk thread may take a moment longer, which `cut` waits for."""
        Guest.alive = None
        self._watch.kill()
        self._watch.wait()
        self._watch.stdin.close()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
