"""From files to checked tables: sources, downloads, splits, and the leakage gate."""
