"""One file per data set, and one for a team's own files."""
