"""Backups that can be trusted: taken from one snapshot, counted in it, complete or not there, and restored to prove it."""
