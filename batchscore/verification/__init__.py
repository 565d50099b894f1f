"""Compares a model's scores with those of its own library, on pairs where the two are likely to differ."""
