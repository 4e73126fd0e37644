"""Trouble that lasts, told twice: when it begins and when it is over, however many requests meet it meanwhile."""

import logging
import threading
import time

_log = logging.getLogger(__name__)


class Outage:
    """What one process cannot do for a while."""

    def __init__(self, what: str) -> None:
        """Name what cannot be done, as the log says it."""
        self._what = what
        self._lock = threading.Lock()
        self._since = 0.0
        self._times = 0

    def begin(self, error: Exception, **facts: str) -> None:
        """Tell of the first failure with all that is known; count the others."""
        with self._lock:
            self._times += 1
            if self._times > 1:
                return
            self._since = time.monotonic()
        _log.error("%s; told once until it is over", self._what, exc_info=error, extra=facts)

    def end(self) -> None:
        """Tell, once, that it is over; to be called whenever it works."""
        if not self._times:
            return
        with self._lock:
            times, self._times = self._times, 0
            lasted = time.monotonic() - self._since
        if times:
            _log.warning("over: %s", self._what, extra={"failed": times, "seconds": round(lasted, 1)})
