"""The command line by group of commands: arguments, help texts, and the function that runs each command.

`main.py` calls the `add…` function of each module. A command's own module is imported only when the command runs, so
that `darkroom --help` loads neither Redis' client nor an HTTP client. `arguments.py` has what several commands share.
"""
