"""Formats and storage: files, datasets and object stores, read as units of rows and written as whole files."""
