"""A clock that leaps, for one server: a library before the C library adds an offset to the time of day."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

from support.servers import Build

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile const long *offset;
static int (*real_gettimeofday)(struct timeval *, void *);
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
  int file = open(getenv("LEAPING_CLOCK"), O_RDONLY);
  offset = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
  real_gettimeofday = dlsym(RTLD_NEXT, "gettimeofday");
  real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
}

int gettimeofday(struct timeval *tv, void *zone) {
  int result = real_gettimeofday(tv, zone);
  tv->tv_sec += *offset;
  return result;
}

int clock_gettime(clockid_t id, struct timespec *ts) {
  int result = real_clock_gettime(id, ts);
  if (id == CLOCK_REALTIME) ts->tv_sec += *offset;
  return result;
}

time_t time(time_t *t) {
  struct timespec ts;
  clock_gettime(CLOCK_REALTIME, &ts);
  if (t) *t = ts.tv_sec;
  return ts.tv_sec;
}
"""


class LeapingClock:
    """The clock of a server program, which is ahead of this machine's by an offset in a file."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "offset"
        self._library = directory / "clock.so"
        self._program = directory / "server"
        self._seconds = 0
        self.leap(0)

    @staticmethod
    def available() -> bool:
        """Whether there is a C compiler."""
        return shutil.which("cc") is not None

    def on(self, build: Build) -> Build:
        """A server program that has this clock."""
        source = self._library.with_suffix(".c")
        source.write_text(SOURCE, encoding="utf-8")
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-o", str(self._library), str(source), "-ldl"], check=True
        )
        variables = f"LEAPING_CLOCK='{self._file}' LD_PRELOAD='{self._library}'"
        self._program.write_text(f"#!/bin/sh\n{variables} exec '{build.binary}' \"$@\"\n", encoding="utf-8")
        self._program.chmod(0o700)
        return Build(build.name, str(self._program))

    def leap(self, seconds: float) -> None:
        """Moves the clock, ahead or back."""
        self._seconds += round(seconds)
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("l", self._seconds))
