"""The container files: what they copy exists and suffices, and the server accepts their flags."""

from __future__ import annotations

import argparse
import json
import re
import tomllib

import pytest
import yaml

from t5_pipeline.cli.serve import add_serve
from tests.tiny_run import ROOT

DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


def test_the_image_contains_every_folder_of_the_package() -> None:
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.M) for name in line.split()}
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values()
    assert copied >= {*folders, "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert {name.removeprefix("!") for name in ignored if name.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("given", ["image", "compose"])
def test_the_server_accepts_the_flags(given: str) -> None:
    entry = json.loads(re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.M)[0])
    server = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["server"]
    flags = json.loads(re.findall(r"^CMD (.+)$", DOCKERFILE, re.M)[-1]) if given == "image" else server["command"]
    assert entry[0] == "t5-pipeline"
    parser = argparse.ArgumentParser()
    add_serve(parser.add_subparsers())
    parsed = parser.parse_args([*entry[1:], *flags])
    assert (parsed.model, parsed.prompts, parsed.port) == ("/model", "/prompts", 8000)
    assert (ROOT / "deploy" / server["build"]["context"] / server["build"]["dockerfile"]).resolve().is_file()
    seconds = int(server["stop_grace_period"].removesuffix("s"))
    assert seconds > parsed.timeout  # accepted requests are answered
