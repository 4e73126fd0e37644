"""Turns of a process's threads at what one of them does at a time."""

import threading


class Turn:
    """A lock that belongs to nobody while its next owner waits for the interpreter.

    `threading.Lock` becomes that of a waiting thread as soon as it is let go of. That thread has to wait for the
    interpreter then, and whoever has it meanwhile finds the lock taken and waits too: once one has waited, all do, for
    as long as requests come close together, and a short request takes a quarter longer. (Blasgen, Gray, Mitoma and
    Price, The convoy phenomenon, 1979.) Here whoever wakes looks again; another may have been quicker.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._free = threading.Condition()

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for it, at most so many seconds; say whether it is the caller's now."""
        with self._free:
            is_free = self._free.wait_for(lambda: not self._is_taken, timeout)
            self._is_taken |= is_free
            return is_free

    def release(self) -> None:
        """Let another have it."""
        with self._free:
            self._is_taken = False
            self._free.notify()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
