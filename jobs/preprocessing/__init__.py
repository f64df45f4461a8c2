"""The steps of ``jobs.preprocess``: reading, cleaning, shaping, writing."""
