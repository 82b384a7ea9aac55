"""What jobs.benchmark measures: ours and other systems, each in a process of its own, on one machine and one split."""
