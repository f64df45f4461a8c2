"""Every endpoint of the gateway, and which of its phases the guards judge; a test holds that none is missing.

An endpoint stands here with the phases through which no text passes to or from a model, and why. All other
phases are judged: there is no other way to a model than the pipeline's steps.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.contracts import Direction
from validation.guards.coverage import Phases

_NO_MODEL: Phases = dict.fromkeys(Direction, "no model is asked")
_ALL: Phases = {}
_LATER: Phases = dict.fromkeys(Direction, "every row of a batch is judged as a request of its own")
_TUNED: Phases = dict.fromkeys(Direction, "the tuned model is asked under its base's policy")
_FEEDBACK: Phases = dict.fromkeys(Direction, "what is kept of it is judged; no model is asked")

#: By method and path, as :mod:`deployments.gateway.app` routes them.
ENDPOINTS: Mapping[str, Phases] = {
    "POST /v1/chat/completions": _ALL,
    "POST /v1/completions": _ALL,
    "POST /v1/responses": _ALL,
    "POST /v1/messages": _ALL,
    "POST /v1/embeddings": {Direction.OUTPUT: "vectors are no text"},
    "POST /v1/feedback": _FEEDBACK,
    "POST /v1/files": _LATER,
    "GET /v1/files": _NO_MODEL,
    "GET /v1/files/{file_id}": _NO_MODEL,
    "DELETE /v1/files/{file_id}": _NO_MODEL,
    "GET /v1/files/{file_id}/content": _LATER,
    "POST /v1/batches": _LATER,
    "GET /v1/batches": _NO_MODEL,
    "GET /v1/batches/{batch_id}": _NO_MODEL,
    "POST /v1/batches/{batch_id}/cancel": _NO_MODEL,
    "POST /v1/fine_tuning/jobs": _TUNED,
    "GET /v1/fine_tuning/jobs": _NO_MODEL,
    "GET /v1/fine_tuning/jobs/{job_id}": _NO_MODEL,
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": _NO_MODEL,
    "POST /v1/fine_tuning/jobs/{job_id}/pause": _NO_MODEL,
    "POST /v1/fine_tuning/jobs/{job_id}/resume": _NO_MODEL,
    "GET /v1/fine_tuning/jobs/{job_id}/events": _NO_MODEL,
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": _NO_MODEL,
    "POST /admin/keys": _NO_MODEL,
    "GET /admin/keys": _NO_MODEL,
    "GET /admin/keys/{id}": _NO_MODEL,
    "PATCH /admin/keys/{id}": _NO_MODEL,
    "DELETE /admin/keys/{id}": _NO_MODEL,
    "POST /admin/keys/{id}/rotate": _NO_MODEL,
    "GET /openapi.json": _NO_MODEL,
    "GET /v1/models": _NO_MODEL,
    "DELETE /v1/models/{model:path}": _NO_MODEL,
    "GET /v1/models/{model:path}": _NO_MODEL,
    "GET /healthz": _NO_MODEL,
}
