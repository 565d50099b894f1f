"""Several processes that work on one job: on this machine, or on a Ray cluster."""
