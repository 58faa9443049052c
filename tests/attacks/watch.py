"""What a process does while a hostile file is open: code that runs, files that are opened or written."""

import contextlib
import ctypes
import os
import struct
import sys
from pathlib import Path

# each would be a way out of the data of a file into code, whoever calls it
RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"}
RUNS |= {"subprocess.Popen", "pickle.find_class"}
_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "shutil.rmtree"}


class Watch:
    """What happened, of what must not."""

    def __init__(self, forbidden, planted):
        self.forbidden, self.planted, self.seen = Path(forbidden), planted, []

    def event(self, name, arguments):
        ran = name in RUNS or (name == "import" and arguments[0] == self.planted)
        touched = (name == "open" or name in _WRITES) and self._is_forbidden(arguments[0])
        if ran or touched:
            self.seen.append((name, repr(arguments)[:200]))

    def _is_forbidden(self, path):
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        real = os.path.realpath(os.fsdecode(path))
        return real == str(self.forbidden) or real.startswith(f"{self.forbidden}/")


_active: list[Watch] = []
_hooked: list[bool] = []


def _hook(name, arguments):
    for watch in _active:
        watch.event(name, arguments)


@contextlib.contextmanager
def watching(forbidden, planted):
    """Records code that runs, a module that is imported, and files of a folder that are opened.

    Args:
        forbidden: a folder in which no file may be opened or written.
        planted: the name of a module that nobody may import.
    """
    if not _hooked:  # an audit hook stays as long as the process
        sys.addaudithook(_hook)
        _hooked.append(True)
    watch = Watch(forbidden, planted)
    _active.append(watch)
    try:
        with _opened_below(watch.forbidden, watch.seen):
            yield watch
    finally:
        _active.remove(watch)


# --- files that other code than Python opens

_OPENED, _NEVER_WAIT = 0x20, os.O_NONBLOCK | os.O_CLOEXEC
_EVENT = struct.Struct("iIII")  # watch, what happened, a number, length of the name that follows
_A_FOLDER = 1 << 30


@contextlib.contextmanager
def _opened_below(folder, seen):
    """Records the files below a folder that this process, or any other, opens; the kernel tells."""
    library = ctypes.CDLL(None, use_errno=True)
    events = library.inotify_init1(_NEVER_WAIT)
    assert events >= 0, os.strerror(ctypes.get_errno())
    try:
        for here, _, _ in os.walk(folder):
            assert library.inotify_add_watch(events, os.fsencode(here), _OPENED) >= 0, here
        with contextlib.suppress(BlockingIOError):
            os.read(events, 1 << 16)  # of looking for folders
        yield
        with contextlib.suppress(BlockingIOError):
            seen += [("opened", name) for name in _files_opened(os.read(events, 1 << 16))]
    finally:
        os.close(events)


def _files_opened(content):
    at = 0
    while at < len(content):
        _, what, _, length = _EVENT.unpack_from(content, at)
        at += _EVENT.size
        name = content[at : at + length].rstrip(b"\0").decode()
        at += length
        if not what & _A_FOLDER:
            yield name


# --- memory


def peak():
    """The largest size of this process in memory since `forget_peak`, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")
