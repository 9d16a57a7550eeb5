"""The child process: loads the models, runs one job at a time, stores its pictures."""
