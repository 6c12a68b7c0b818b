"""Trace a function once and evaluate it again with a handler at chosen sites."""
