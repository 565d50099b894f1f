"""A window of pairs in, its scores out: packs, workers, retries."""
