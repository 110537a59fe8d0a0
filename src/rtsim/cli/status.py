"""Exit statuses of the program."""

from __future__ import annotations

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
