"""The tables of tenants and keys: the truth about access, which Redis has a copy of (`directory.py`).

`store.py` reads and writes them. Each change increments the one `revision`, so that copies can be compared.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, Table, Text

from darkroom.database.client import metadata

STATE_ID = 1
"""The primary key of the one row of `access_state`."""

access_state = Table(
    "access_state",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", Text, primary_key=True),
    # The tenant (`records.py`) without its name.
    Column("definition", JSON, nullable=False),
    # The revision of the last change.
    Column("revision", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    # The key (`records.py`) without its id, its tenant and its last use.
    Column("definition", JSON, nullable=False),
    # Milliseconds since the epoch.
    Column("last_used", BigInteger),
    Column("revision", BigInteger, nullable=False),
)

Index("api_keys_by_tenant", api_keys.c.tenant, api_keys.c.id)
