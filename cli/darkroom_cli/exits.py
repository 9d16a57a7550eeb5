"""The exit statuses of every command; `darkroom --help` lists them."""

from __future__ import annotations

DONE = 0
FAILED = 1
BAD_INPUT = 2
UNREACHABLE = 3
INTERRUPTED = 130
"""128 + SIGINT, as shells count."""

HELP = f"""\
exit status:
  {DONE}    it is done: the job completed, the cancel was taken, `up` was asked to end; or nothing was found
  {FAILED}    the job failed, expired or was cancelled; `up` could not start; or something was found
  {BAD_INPUT}    the command, a setting, or what was asked for cannot be taken; each field at fault is named
  {UNREACHABLE}    the server cannot be reached, or cannot answer now
  {INTERRUPTED}  Ctrl-C, while waiting
"""
