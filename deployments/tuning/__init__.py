"""Fine-tuning workers: they bring what ``/v1/fine_tuning/jobs`` put on record to its end.

A worker trains nothing itself: it submits ``jobs.tune`` as a Ray job, follows it by its submission id, and
publishes the route of what came of it. It stands beside the batch worker, in the same replica.
"""
