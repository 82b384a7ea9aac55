"""Which users to learn from: adaptive user sampling and uniform."""
