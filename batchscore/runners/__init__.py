"""Runners: a score type on a device."""
