"""The SQL database: its client and its migrations. `history/`, `access/` and `trail/` define the tables."""
