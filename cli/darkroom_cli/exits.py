"""The exit statuses of every command; `darkroom --help` lists them."""

from __future__ import annotations

DONE = 0
FAILED = 1
BAD_INPUT = 2
UNREACHABLE = 3
INTERRUPTED = 130
"""128 + SIGINT, the convention of shells."""

HELP = f"""\
exit status:
  {DONE}    success: the job completed, the cancel was accepted, `up` was stopped, or nothing was found
  {FAILED}    the job failed, expired or was cancelled; `up` could not start; or something was found
  {BAD_INPUT}    the command, a setting or the request is invalid or not permitted; each invalid field is named
  {UNREACHABLE}    the server cannot be reached, or is unavailable
  {INTERRUPTED}  interrupted by Ctrl-C
"""
