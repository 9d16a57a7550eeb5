"""From a job request to an accepted job: `reading.py` validates it, `intake.py` has the ledger accept it."""
