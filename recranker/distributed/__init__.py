"""The rim: everything that imports ray."""
