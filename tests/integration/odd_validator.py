"""A Guardrails AI validator that behaves badly on some words. Imported only where guardrails is."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from guardrails.validator_base import FailResult, PassResult, Validator, register_validator


@register_validator(name="manta-tests/odd", data_type="string")
class Odd(Validator):
    """Fails on ``bad``, raises on ``raise``, dies of ``die``, and hangs on ``hang FILE``.

    It makes the file, and goes on when that is gone.
    """

    def validate(self, value: Any, metadata: Any) -> Any:
        """See guardrails."""
        if "raise" in value:
            raise RuntimeError(value)
        if value.startswith("hang "):
            there = Path(value.removeprefix("hang "))
            there.touch()
            while there.exists():
                time.sleep(0.05)
        if "die" in value:  # As the kernel ends what eats the memory of a machine.
            os.kill(os.getpid(), signal.SIGKILL)
        return FailResult(error_message="x") if "bad" in value else PassResult()
