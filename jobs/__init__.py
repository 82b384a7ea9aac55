"""What we run: one short job per stage, and the pipeline of them all."""
