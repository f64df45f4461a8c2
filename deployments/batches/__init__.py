"""Batch workers: they do what ``/v1/batches`` put on record, through the gateway's own request path.

A worker is resident, so that a batch's first answer comes within seconds, and asks the deployed models: rows
have the key's routes and limits, the policy that was pinned, and the same guards, records and metrics as any
request. Large batches on engines of their own are ``jobs.batch_inference``'s.
"""
