"""How often a key may be used: no 60 s hold more requests than one limit, no second more than another.

On one host the counts lie in a file that all its processes map, whatever started them: exact over all of them. Over
several hosts they lie in Redis (or Valkey); while that is away each host limits by its own file. Nothing here decides
whether a key is good, and nothing of it outlasts a minute.
"""

import ctypes
import fcntl
import hashlib
import logging
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_address
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError
from redis.retry import Retry

from portal import metrics
from portal.rules.text import network_of

_log = logging.getLogger(__name__)

PER_MINUTE = 1000  # requests in any 60 s, where an administrator set no other
PER_SECOND = 50
REDIS_PATIENCE = 0.1  # seconds to wait for an answer
_TO_CONNECT = 0.05  # seconds
_ASK_AGAIN = 1.0  # seconds between looks whether Redis is back
_BAD_KEYS = 300  # a minute from one network; the sender of more is told to wait
_NETWORKS = 20_000  # that a process counts apart


class Admission(NamedTuple):
    """What the limits say of one request."""

    limit: int  # requests in any 60 s
    remaining: int
    grows_in: float  # seconds until `remaining` next grows
    wait: float  # seconds until a request may pass; 0 for one that passes

    @property
    def retry_after(self) -> int:
        """Whole seconds to wait (RFC 9110, section 10.2.3)."""
        return max(1, ceil(self.wait))

    def reset_at(self, now: float) -> int:
        """Say when `remaining` next grows, in Unix seconds."""
        return ceil(now + self.grows_in)


class RateLimit:
    """The limits of one portal: Redis decides where there is one, else this host does."""

    def __init__(self, path: Path, redis_url: str | None = None) -> None:
        self._host = HostWindows(path)
        self._shared = RedisWindows(redis_url) if redis_url else None
        self._is_away = False  # Redis; then a thread looks for it
        self._has_answered = False  # since this process began
        self._losing = threading.Lock()
        self._closing = threading.Event()

    def admit(
        self, key_pk: int, key_id: str, per_minute: int | None = None, per_second: int | None = None
    ) -> Admission:
        """Count a request of a good key, or say how long it has to wait: by its own limits, or else the usual ones."""
        per_minute, per_second = per_minute or PER_MINUTE, per_second or PER_SECOND
        if self._shared is None or self._is_away:
            return self._host.admit(key_pk, per_minute, per_second)
        # Redis does not know what this host let pass while Redis was away. So the host's own count is asked first:
        # without it, a key could use its whole limit a second time when Redis comes back.
        admission = self._host.admit(key_pk, per_minute, per_second, noted=False)
        if admission.wait:
            return admission
        try:
            admission = self._shared.admit(key_id, per_minute, per_second)
        except (RedisError, OSError) as error:
            self._lose(error)
            return self._host.admit(key_pk, per_minute, per_second)
        if not self._has_answered:
            self._hear()
        if not admission.wait:
            self._host.admit(key_pk, per_minute, per_second, noted=True)  # should Redis go away, this host knows
        return admission

    @property
    def shared_state(self) -> str | None:
        """Say how Redis did when it was last asked, `up` (also before that) or `away`; None where there is none."""
        return None if self._shared is None else "away" if self._is_away else "up"

    def look(self) -> str | None:
        """Ask Redis, if it is not known to be away, and say how it does: see `shared_state`."""
        if self._shared and not self._is_away:
            try:
                self._shared.try_out()
            except (RedisError, OSError) as error:
                self._lose(error)
            else:
                self._hear()
        return self.shared_state

    def close(self) -> None:
        """Let go of the file and of Redis."""
        self._closing.set()
        self._host.close()
        if self._shared:
            self._shared.close()

    def _lose(self, error: Exception) -> None:
        with self._losing:  # one of all requests that were waiting for it
            if self._is_away:
                return
            self._is_away = True
        metrics.redis_is_up(False)
        cause = f"{type(error).__name__}: {error}"[:200]
        _log.error("Redis is away: each host limits by itself until it is back", extra={"error": cause})
        threading.Thread(target=self._look_for_it, name="redis", daemon=True).start()

    def _look_for_it(self) -> None:
        assert self._shared is not None  # noqa: S101 - only then is this called
        while not self._closing.wait(_ASK_AGAIN):
            try:
                self._shared.try_out()
            except (RedisError, OSError):
                continue
            _log.warning("Redis is back: the limits hold over all hosts again")
            self._is_away = False
            self._hear()
            return

    def _hear(self) -> None:
        with self._losing:
            if not self._is_away:  # an answer may have been on its way meanwhile
                self._has_answered = True
                metrics.redis_is_up(True)


# --- One host -------------------------------------------------------------------------------------------------------


class _Wheel(NamedTuple):
    """A window as a ring of buckets, one more than it is long: the oldest still counts until it has wholly left.

    So no window of that length ever holds more than the limit, and a request waits at most a bucket's width too long.
    """

    width: float  # seconds of a bucket
    buckets: int
    head: int  # where in a slot its three numbers stand: newest bucket, sum, oldest bucket that is not empty
    first: int  # where its counts begin
    zeros: memoryview

    def turn(self, heads: memoryview, counts: memoryview, slot: int, tick: int) -> int:
        """Empty the buckets that have left the window; give the sum of the others."""
        head, first = slot * _HEADS + self.head, slot * _COUNTS + self.first
        gone = tick - heads[head]
        if gone == 0:
            return heads[head + 1]
        total = heads[head + 1]
        if gone >= self.buckets or gone < 0 or total == 0:  # below zero: the machine was started anew
            counts[first : first + self.buckets] = self.zeros
            total, heads[head + 2] = 0, tick
        else:
            start = (tick - gone + 1) % self.buckets
            over = max(0, start + gone - self.buckets)  # so many lie at the ring's beginning
            for at, many in ((first + start, gone - over), (first, over)):
                if many:
                    total -= sum(counts[at : at + many])
                    counts[at : at + many] = self.zeros[:many]
        heads[head], heads[head + 1] = tick, total
        return total

    def add(self, heads: memoryview, counts: memoryview, slot: int, tick: int) -> None:
        """Count one request in the newest bucket."""
        head, at = slot * _HEADS + self.head, slot * _COUNTS + self.first + tick % self.buckets
        if counts[at] < _FULL:
            counts[at] += 1
            heads[head + 1] += 1

    def leaves_in(self, heads: memoryview, counts: memoryview, slot: int, now: float) -> float:
        """Say in how many seconds the oldest bucket that holds requests leaves the window."""
        head, first = slot * _HEADS + self.head, slot * _COUNTS + self.first
        tick = heads[head]
        oldest = max(heads[head + 2], tick - self.buckets + 1)
        while oldest < tick and not counts[first + oldest % self.buckets]:
            oldest += 1
        heads[head + 2] = oldest
        return max(0.0, (oldest + self.buckets) * self.width - now)


_FULL = 65_535  # a count has 16 bits
_SLOT = 512  # bytes of a key's slot: eight numbers of 64 bits, then counts of 16
_HEADS, _COUNTS = _SLOT // 8, _SLOT // 2
_MINUTE = _Wheel(0.5, 121, 1, 32, memoryview(bytes(121 * 2)).cast("H"))
_SECOND = _Wheel(0.01, 101, 4, 32 + 121, memoryview(bytes(101 * 2)).cast("H"))
_GROUP = 32  # slots that a key may lie in
_GROUPS = 2048
_SIZE = _SLOT * _GROUP * _GROUPS  # 32 MiB: 65,536 keys within one minute; beyond, the longest unused start anew
_REMEMBERED = 100_000  # slots that a process knows by heart


class _Flock(ctypes.Structure):
    """Linux's `struct flock`, see fcntl(2)."""

    _fields_ = (
        ("type", ctypes.c_short),
        ("whence", ctypes.c_short),
        ("start", ctypes.c_long),
        ("length", ctypes.c_long),
        ("pid", ctypes.c_int),
    )


_at_once = ctypes.PyDLL(None).fcntl if sys.platform == "linux" else lambda *_: -1


class HostWindows:
    """The counts of one host, in a file that its processes map.

    A key's slot is changed only under the lock of its group, which the system takes back from a process that dies. The
    clock is the monotonic one, which all processes of a host share and nobody sets.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._turn = threading.Lock()
        self._asked = {
            fcntl.LOCK_EX: _Flock(fcntl.F_WRLCK, os.SEEK_SET, 0, 1),
            fcntl.LOCK_UN: _Flock(fcntl.F_UNLCK, os.SEEK_SET, 0, 1),
        }
        self._file = -1
        self._map: mmap.mmap | None = None
        self._heads = self._counts = memoryview(b"")
        self._roomy: set[int] = set()  # groups that have their place on the disk
        self._known: dict[int, int] = {}  # slots by key; looked at again before they are believed

    def admit(self, key: int, per_minute: int, per_second: int, *, noted: bool | None = None) -> Admission:
        """Judge a request and count it if it passes; `noted=True` counts it in any case, `noted=False` never does."""
        group = (key * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) >> 53
        with self._turn:
            if self._map is None:
                self._open()
            if group not in self._roomy:
                self._make_room(group)
            self._lock(fcntl.LOCK_EX, group)
            try:
                return self._judge(key, group, per_minute, per_second, noted)
            finally:
                self._lock(fcntl.LOCK_UN, group)

    def close(self) -> None:
        """Let go of the file; the next request maps it again."""
        with self._turn:
            self._let_go()
            if self._file >= 0:
                os.close(self._file)
            self._file = -1
            self._roomy.clear()

    def _judge(self, key: int, group: int, per_minute: int, per_second: int, noted: bool | None) -> Admission:
        heads, counts, now = self._heads, self._counts, self._clock()
        tick, short = int(now / _MINUTE.width), int(now / _SECOND.width)
        slot = self._slot(key, group)
        in_minute = _MINUTE.turn(heads, counts, slot, tick)
        in_second = _SECOND.turn(heads, counts, slot, short)
        wait = 0.0
        if in_minute >= per_minute:
            wait = max(_MINUTE.leaves_in(heads, counts, slot, now), _MINUTE.width)
        elif in_second >= per_second:
            wait = max(_SECOND.leaves_in(heads, counts, slot, now), _SECOND.width)
        if noted or (noted is None and not wait):
            _MINUTE.add(heads, counts, slot, tick)
            _SECOND.add(heads, counts, slot, short)
            in_minute += 1
        grows_in = _MINUTE.leaves_in(heads, counts, slot, now)
        return Admission(per_minute, max(0, per_minute - in_minute), grows_in, wait)

    def _slot(self, key: int, group: int) -> int:
        """Find a key's slot, or give it the one of its group that nobody used for longest."""
        heads = self._heads
        known = self._known.get(key)
        if known is not None and heads[known * _HEADS] == key:
            return known
        first = group * _GROUP
        slots = range(first, first + _GROUP)
        found = next((slot for slot in slots if heads[slot * _HEADS] == key), None)
        if found is None:
            found = min(slots, key=lambda slot: heads[slot * _HEADS + _MINUTE.head])
            start = found * _HEADS
            heads[start : start + _HEADS] = memoryview(bytes(_SLOT)).cast("Q")
            heads[start] = key
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = found
        return found

    def _lock(self, how: int, group: int) -> None:
        """Lock a group, as fcntl.lockf does; but while nobody else has it, keep the interpreter lock meanwhile.

        To let go of that for a moment is to wake all other requests, and to wait until they wait again.
        """
        if self._file < 0:
            return
        asked = self._asked[how]
        asked.start = group
        if _at_once(self._file, fcntl.F_SETLK, ctypes.byref(asked)):
            fcntl.lockf(self._file, how, 1, group)

    def _open(self) -> None:
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.fstat(self._file).st_size != _SIZE:
                os.ftruncate(self._file, _SIZE)  # it takes room on the disk only where it is used
            self._map_it(mmap.mmap(self._file, _SIZE))
        except OSError as error:
            self._count_alone(error)

    def _make_room(self, group: int) -> None:
        """See to it that the disk has a group's place: a page without one would end the process when it is written."""
        if self._file >= 0:
            try:
                os.posix_fallocate(self._file, group * _GROUP * _SLOT, _GROUP * _SLOT)
            except OSError as error:
                self._let_go()
                self._count_alone(error)
        self._roomy.add(group)

    def _count_alone(self, error: OSError) -> None:
        _log.error("each process limits by itself: the file of counts cannot be written", exc_info=error)
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
        self._map_it(mmap.mmap(-1, _SIZE))

    def _map_it(self, made: mmap.mmap) -> None:
        self._map = made
        self._heads, self._counts = memoryview(made).cast("Q"), memoryview(made).cast("H")

    def _let_go(self) -> None:
        self._heads.release()
        self._counts.release()
        self._heads = self._counts = memoryview(b"")
        if self._map is not None:
            self._map.close()
        self._map = None


# --- Bad keys -------------------------------------------------------------------------------------------------------


class BadKeys:
    """How many bad keys came from each network in this minute, as one process saw it.

    They are still looked up, so that a good key from the same network passes whatever comes beside it. This machine's
    own address is let be: it stands for whoever comes through a proxy that is not a trusted one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counting = threading.Lock()
        self._minute = 0
        self._counts: dict[str, int] = {}

    def wait_of(self, address: str | None) -> int:
        """Count a bad key; give the seconds that its sender is to wait, 0 while there are few."""
        network = _sender(address)
        if network is None:
            return 0
        now = self._clock()
        minute = int(now // 60)
        with self._counting:
            if minute != self._minute or len(self._counts) > _NETWORKS:
                self._minute, self._counts = minute, {}
            count = self._counts[network] = self._counts.get(network, 0) + 1
        if count == _BAD_KEYS + 1:
            _log.warning("many bad keys come from one network", extra={"network": network})
        return ceil(60 - now % 60) if count > _BAD_KEYS else 0


@lru_cache(maxsize=4096)
def _sender(address: str | None) -> str | None:
    """Name the network that an address belongs to; None for this machine's own."""
    return None if ip_address(address or "::").is_loopback else network_of(address)


# --- Several hosts --------------------------------------------------------------------------------------------------

# A ring of the moments of the last `limit` requests, behind its two numbers: how many there ever were, and which was
# the first less than a minute ago. By Redis's own clock, which all hosts share. Gives how many are left, and in how
# many microseconds that grows and a request may pass.
_ADMIT = """
local limit, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local count, first = 0, 0
local head = redis.call('GETRANGE', KEYS[1], 0, 15)
if #head == 16 then count, first = struct.unpack('>dd', head) end
local function moment(n)
    local at = 16 + (n % limit) * 8
    return (struct.unpack('>d', redis.call('GETRANGE', KEYS[1], at, at + 7)))
end
if count > first then
    local newest = moment(count - 1)
    -- Of a clock that was put back nothing is kept: it would shut a key out for as long as that.
    if newest <= now - 60000000 or newest > now + 1000000 then first = count end
end
while first < count and moment(first) <= now - 60000000 do first = first + 1 end
local wait = 0
if count - first >= limit then
    wait = moment(first) + 60000000 - now
elseif burst < limit and count - first >= burst then
    wait = math.max(0, moment(count - burst) + 1000000 - now)
end
if wait == 0 then
    local at = 16 + (count % limit) * 8
    redis.call('SETRANGE', KEYS[1], at, struct.pack('>d', now))
    count = count + 1
end
redis.call('SETRANGE', KEYS[1], 0, struct.pack('>dd', count, first))
redis.call('PEXPIRE', KEYS[1], 61000)
local grows = 0
if first < count then grows = math.max(0, moment(first) + 60000000 - now) end
return {limit - (count - first), grows, wait}
"""
_ADMIT_SHA = hashlib.sha1(_ADMIT.encode(), usedforsecurity=False).hexdigest()  # Redis's name for it


class RedisWindows:
    """The counts of all hosts, in Redis or Valkey: one round trip a request."""

    def __init__(self, url: str) -> None:
        self._redis: Redis = Redis.from_url(
            url,
            socket_timeout=REDIS_PATIENCE,
            socket_connect_timeout=_TO_CONNECT,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,  # else a request waits twice while the client introduces itself
        )

    def admit(self, key_id: str, per_minute: int, per_second: int) -> Admission:
        """Count a request unless one of the limits is met. Raises RedisError, also for nonsense, or OSError."""
        asked = (1, f"latchkey:rate:{key_id}:{per_minute}", str(per_minute), str(per_second))
        try:
            told: Any = self._redis.evalsha(_ADMIT_SHA, *asked)
        except NoScriptError:  # the first time; it knows the script from then on
            told = self._redis.eval(_ADMIT, *asked)
        try:
            remaining, grows, wait = told
            return Admission(per_minute, max(0, remaining), grows / 1e6, wait / 1e6)
        except (TypeError, ValueError):
            raise RedisError(f"no answer to what was asked: {told!r:.100}") from None

    def try_out(self) -> None:
        """Ask whether Redis counts: one that is full answers a ping too. Raises RedisError or OSError."""
        self.admit("", 1, 1)

    def close(self) -> None:
        """Hang up."""
        self._redis.close()
