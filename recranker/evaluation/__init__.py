"""Metrics, intervals, the results table and its plot."""
