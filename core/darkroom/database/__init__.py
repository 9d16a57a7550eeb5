"""The SQL database: its client and its migrations. `history/` and `access/` define the tables."""
