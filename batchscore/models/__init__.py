"""From a checkpoint's files to modules that score."""
