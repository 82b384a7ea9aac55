"""Conventional recommenders that propose candidates and signals."""
