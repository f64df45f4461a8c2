"""The model application: one engine behind a deployment handle, without an HTTP route.

    applications:
    - name: gemma
      route_prefix: null
      import_path: deployments.model:build
      args: {model: <artifact address>, llm_config: {...ray.serve.llm.LLMConfig's own keys...}}

The replica speaks :mod:`cluster.contracts.handle`: plain dicts in, bytes of server-sent events out, so that
the gateway needs none of vLLM's types. It always streams; whoever wants one answer assembles it, so that
guards, accounting and abort work on one path.

How tokens travel was chosen by figures (``python -m tests.benchmarks.token_path``, 2 cores, a stub engine
that emits a token every 5 ms on each of 32 streams, 6,400 tokens/s offered):

=================================  ==========  ==================  ==============
handed over                        tokens/s    CPU ms/1,000        of it replica
=================================  ==========  ==================  ==============
one item a token                   2,138       748                 211
gathered 5 ms in the replica       3,018       517                 142
gathered 10 ms                     4,041       255                 67
gathered 20 ms                     5,903       279                 77
gathered 50 ms                     6,033       199                 55
=================================  ==========  ==================  ==============

So items are gathered for 20 ms. It is a bound on the rate (50 items a second and stream), not a delay: the
first token leaves at once, and so does every token of a stream slower than that (at 25 ms a token, as a small
model on a CPU has, no figure changes). From 8 streams on, all of a replica together send 400 items a second,
and each at least ten (:class:`deployments.gather.Pace`): an item costs gateway and proxy more than ten tokens
in it. Serve's gRPC in place of actor calls
(``RAY_SERVE_USE_GRPC_BY_DEFAULT``) takes a third off the replica's share and can be switched on for a
cluster; it is not needed here.

Output guards run in the gateway. In the replica the same guards (the default policy, 32 streams) cost as much
in all (338 against 351 CPU ms a 1,000 tokens, which is noise), but 31 of them more in the process that feeds
the engine, where they cannot be scaled apart. In the gateway one place covers every kind of upstream, and a
new policy touches no replica.
"""

# No postponed annotations here: Serve reads the type of build's argument.

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import UsageError
from cluster.settings import describe_validation_error, load_settings

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.llm import LLMConfig

#: Name of the deployment in every model application: routes point to it.
DEPLOYMENT = "model"


class ModelApplicationArgs(BaseModel):
    """``args`` of a model application in a Serve configuration file."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(
        description="Address of the base model's artifact. `manta deploy` also takes 'demo', s3://, a local "
        "directory or a Hugging Face id here, and puts the address in its place."
    )
    llm_config: dict[str, Any] = Field(description="ray.serve.llm.LLMConfig, with its own keys.")
    gather_ms: float = Field(
        20.0,
        ge=0,
        description="At most one item leaves a stream in so many milliseconds, more with many streams.",
    )


def build(args: ModelApplicationArgs) -> "Application":
    """The application that Serve runs.

    Raises UsageError with one sentence when ``llm_config`` is wrong.
    """
    from ray.serve.llm import build_llm_deployment

    from deployments.replica import AdapterLoader, Engine, ModelServer

    return build_llm_deployment(
        llm_config(args),
        deployment_cls=ModelServer,
        bind_kwargs={
            "gather_s": args.gather_ms / 1000,
            "engine_cls": Engine,
            "model_downloader": AdapterLoader,
        },
        override_serve_options={"name": DEPLOYMENT},
    )


def llm_config(args: ModelApplicationArgs) -> "LLMConfig":
    """Ray's configuration from ``args``, with what every model application here needs put in.

    Raises UsageError with one sentence.
    """
    import ray
    from ray.llm._internal.common.callbacks.base import CallbackConfig
    from ray.serve.llm import LLMConfig

    from deployments.replica import WeightsFromArtifact

    keys = dict(args.llm_config)
    if "callback_config" in keys:
        raise UsageError("llm_config.callback_config: the model application has its own; leave it out.")
    keys["callback_config"] = CallbackConfig(
        callback_class=WeightsFromArtifact, callback_kwargs={"model": args.model}
    )
    # We gather; Ray's own batcher would hold back the first token for 50 ms.
    keys["experimental_configs"] = {
        "stream_batching_interval_ms": 0,
        **(keys.get("experimental_configs") or {}),
    }
    if (keys.get("engine_kwargs") or {}).get("enable_lora"):
        settings = load_settings()
        adapters = f"s3://{settings.storage.bucket}/{settings.team}/adapters"
        keys["lora_config"] = {"dynamic_lora_loading_path": adapters, **(keys.get("lora_config") or {})}
    # Ray lets this runtime_env's env_vars replace those of the application; they belong together.
    outer = ray.get_runtime_context().runtime_env.get("env_vars") or {}
    own = keys.get("runtime_env") or {}
    if outer or own:
        keys["runtime_env"] = {**own, "env_vars": {**outer, **(own.get("env_vars") or {})}}
    try:
        return LLMConfig(**keys)
    except ValidationError as error:
        raise UsageError(describe_validation_error(error, "llm_config", LLMConfig)) from None
