"""What the user has to hear, in words and an exit status, instead of a traceback."""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

INTERRUPTED = 130  # exit status of a program ended by Ctrl-C: 128 + SIGINT
_NOTHING_HALF = "nothing unfinished stands under its final name; the same command"


class PrepError(ValueError):
    """The command cannot be done as asked. The message says what was got, what was expected and how to mend it."""


class Interrupted(PrepError):
    """The command was cut off by something that passes or is mended: run again, it goes on from what is finished."""


def changed_meanwhile(what: str) -> Interrupted:
    """What to raise where a file is no longer the one that the run began with."""
    advice = "put back what it was and give the same command again, or begin anew with --overwrite"
    return Interrupted(f"{what} changed while the run went on; {advice}.")


class Stopped(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt not an Exception, so that only `exit_status` catches it."""


def refuse_not_utf8(what: str, name: str | None) -> None:
    """Raises PrepError where a name or text is bytes that are no UTF-8, which a manifest could not hold."""
    try:
        (name or "").encode("utf-8")
    except UnicodeEncodeError:
        raise PrepError(f"{what}{name!a}: this is not UTF-8; give another.") from None


def describe_os_error(error: OSError) -> str:
    """An operating system's error as a sentence that says what to do."""
    where = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    advice = {
        errno.ENOSPC: "free some space, or give an --out on another disk",
        errno.EDQUOT: "your quota is used up: free some space, or give an --out elsewhere",
        errno.ENOENT: "put it back, and run the same command again",
        errno.EACCES: "check the permissions, or give another path",
        errno.ENAMETOOLONG: "file systems take 255 bytes a name",
        errno.EFBIG: "a limit on the size of files (ulimit -f) was reached",
        errno.EROFS: "give an --out that can be written to",
        errno.ENOLCK: "this file system has no locks: give an --out on a local disk, and upload it afterwards",
    }.get(error.errno or 0)
    return f"{where}{reason}" + (f"; {advice}." if advice else ".")


def exit_status(run: Callable[[], None], then: str = "begins anew") -> int:
    """Run a command; print what went wrong in words.

    then: what the same command does after it was interrupted.

    Returns:
        0; 1 for what the user can mend; 130 after Ctrl-C, 143 after SIGTERM. Anything else is a defect of this code
        and keeps its traceback.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names and texts may have what a terminal cannot show
    before = signal.signal(signal.SIGTERM, stop)
    try:
        run()
    except PrepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at its exit
        return 1
    except OSError as error:
        print(f"error: {describe_os_error(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted: {_NOTHING_HALF} {then}.", file=sys.stderr)
        return INTERRUPTED
    except Stopped:
        print(f"stopped: {_NOTHING_HALF} {then}.", file=sys.stderr)
        return 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0
