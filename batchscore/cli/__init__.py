"""The command line: one file a command, each option once in options.py."""
