"""Named environments: settings files under `env/`, keys of the ledger, and the parts that `make api-dev` starts."""
