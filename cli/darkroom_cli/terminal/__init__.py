"""The output of commands: lines and JSON, progress bars, picture files, excerpts of logs."""
