"""Replicas of the server on a Ray cluster, behind Ray Serve's proxy; they share nothing but the store of prompts.

    pip install -e '.[serve,ray]'
    serve run deploy.ray_serve:server flags="--model google/t5-base-lm-adapt --prompts s3://bucket/prompts"

`flags` are those of `t5-pipeline serve`, except the address. `replicas` (2) and `cores` of each replica (1) are set in
the same way. Ray restarts a replica that dies. A request that it was answering ends with status 500 and can be sent
again, because replicas keep no state; clients of OpenAI do so by themselves.
"""

import shlex

from pydantic import BaseModel
from ray import serve


class Settings(BaseModel):
    flags: str
    replicas: int = 2
    cores: int = 1


def server(settings: Settings) -> serve.Application:
    words = [*shlex.split(settings.flags), "--threads", str(settings.cores)]

    def application():  # runs in each replica
        from t5_pipeline.cli.serve import application

        return application(words)

    deployment = serve.deployment(
        serve.ingress(application)(),
        name="t5-pipeline",
        num_replicas=settings.replicas,
        max_ongoing_requests=256,  # a replica batches what it has accepted
        graceful_shutdown_timeout_s=65,  # --timeout and a little
        ray_actor_options={"num_cpus": settings.cores},
    )
    return deployment.bind()
