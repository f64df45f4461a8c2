"""Schedules: which job runs when, held by one leader, with every tick on record in SQL."""
