"""Drills: processes of a service are lost while it is used."""
