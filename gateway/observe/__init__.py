"""What happened: the ledger, its roll-up, metrics, logs."""
