"""WebSockets, event streams and long polls: the clients that follow the log of a job or the stream of a tenant.

`follower.py` reads from Redis for all clients of a process; `job_logs.py` and `tenant_streams.py` are the two sources
that it can follow, and `feed.py` holds the messages of one client. `sockets.py`, `sse.py` and `wait.py` serve them.
"""
