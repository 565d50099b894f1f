"""Several processes at one job: on this machine, or on a Ray cluster."""
